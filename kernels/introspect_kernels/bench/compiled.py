"""Kernels compiled for GPUs that are not there, exactly as the host launches them, and what came of it.

The launches are recorded rather than described a second time, so that what is
checked is what ships. Triton's wheel brings ptxas and cuobjdump.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

CUOBJDUMP = str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump")
_TYPES = {
    torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32",
    torch.int64: "i64", torch.int32: "i32", torch.uint8: "u8",
}  # fmt: skip


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel.

    Attributes:
        kernel: the jitted function.
        arguments: by name, constants included.
        options: `num_warps` and the like.
    """

    kernel: Any
    arguments: dict[str, Any]
    options: dict[str, Any]


@dataclass(frozen=True)
class Compiled:
    """What a kernel became.

    Attributes:
        registers: per thread.
        stack: bytes per thread.
        shared: bytes of shared memory per program.
        mma_layouts: warps of a program along each dimension, of every matrix instruction's layout.
        sass: the machine code.
        ptx: what it was made from.
    """

    registers: int
    stack: int
    shared: int
    mma_layouts: frozenset[str]
    sass: str = field(repr=False)
    ptx: str = field(repr=False)

    @property
    def spills(self) -> int:
        """Stores to and loads from the stack."""
        return self._count(r"STL|LDL")

    @property
    def async_copies(self) -> int:
        """Copies to shared memory that no thread waits for."""
        return self._count("LDGSTS|UTMALDG|UBLKCP")

    @property
    def wide_async_copies(self) -> int:
        """Those of 16 bytes a thread."""
        return self._count(r"LDGSTS(?:\.\w+)*\.128")

    @property
    def wide_loads(self) -> int:
        """Loads of 16 bytes a thread into registers."""
        return self._count(r"LDG(?:\.\w+)*\.128")

    @property
    def matrix_instructions(self) -> int:
        """Tensor-core instructions."""
        return self._count("[HQO]MMA|HGMMA|UTC[HQO]MMA")

    def _count(self, opcodes: str) -> int:
        return len(re.findall(rf"\b(?:{opcodes})\b", self.sass))


def launches_of(call: Callable[[], object]) -> list[Launch]:
    """The kernels that `call` launches, none of which runs; its tensors may be on the device `meta`."""
    with _recorded() as launches:
        call()
    return launches


@contextmanager
def _recorded() -> Iterator[list[Launch]]:
    launches: list[Launch] = []

    def record(kernel: Any, *values: Any, grid: Any, warmup: bool, **named: Any) -> None:
        del grid, warmup
        arguments = dict(zip(kernel.arg_names, values, strict=False))
        arguments |= {name: value for name, value in named.items() if name in kernel.arg_names}
        launches.append(Launch(kernel, arguments, {name: value for name, value in named.items() if name not in kernel.arg_names}))

    run = JITFunction.run
    JITFunction.run = record
    try:
        yield launches
    finally:
        JITFunction.run = run


def compile_launch(launch: Launch, capability: int) -> Compiled:
    """Compile a launch for compute capability `capability` (80, 90, 100), specialised as Triton does at run time.

    Pointers count as aligned to 16 bytes, as torch's are: without that there would be no asynchronous copies.

    Raises:
        RuntimeError: cuobjdump said nothing of registers.
    """
    signature, constants, attributes = {}, {}, {}
    for place, name in enumerate(launch.kernel.arg_names):
        value = launch.arguments[name]
        signature[name], aligned = _type(value)
        if signature[name] == "constexpr" or launch.kernel.params[place].is_constexpr:
            signature[name], constants[name] = "constexpr", value
        elif aligned:
            attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(launch.kernel, signature, constants, attributes)
    binary = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch.options)
    dump = _cuobjdump(binary.asm["cubin"])
    usage = re.search(r"REG:(\d+) STACK:(\d+)", dump)
    if usage is None:
        raise RuntimeError(f"cuobjdump told no resource usage: {dump[:500]}")
    layouts = re.findall(r"nvidia_mma<\{[^>]*?warpsPerCTA = (\[[\d, ]+\])", binary.asm["ttgir"])
    return Compiled(int(usage[1]), int(usage[2]), binary.metadata.shared, frozenset(layouts), dump, binary.asm["ptx"])


def _type(value: object) -> tuple[str, bool]:
    """Triton's type of a value, and whether it is known to be a multiple of 16."""
    if isinstance(value, torch.Tensor):
        return f"*{_TYPES[value.dtype]}", True
    if isinstance(value, float):
        return "fp32", False
    if isinstance(value, int) and not isinstance(value, bool) and value != 1:
        return "i32", value % 16 == 0
    return "constexpr", False


def _cuobjdump(cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [CUOBJDUMP, "-res-usage", "-sass", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout  # noqa: S603  (Triton's own tool)
