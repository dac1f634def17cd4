"""Every kernel in every shipped configuration, compiled for three generations of GPUs: the counts that need none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from introspect_kernels.arena import Arena
from introspect_kernels.bench.compiled import Compiled, Launch, compile_launch, launches_of
from introspect_kernels.compact.triton_move import compact_triton, rebudget_triton
from introspect_kernels.decode.triton_host import decode_attention_triton
from introspect_kernels.errors import KernelError
from introspect_kernels.received.triton_span import received_triton
from introspect_kernels.window.triton_rows import row_statistics_triton
from introspect_kernels.window.triton_scores import window_scores_triton

CAPABILITIES = (80, 90, 100)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
SHAPES = tuple((dtype, *shape) for shape in ((32, 16), (64, 4), (80, 1), (96, 2), (128, 7), (256, 8)) for dtype in DTYPES)
"""Element type, head size and query heads per KV head: every tile, heads that fill none, groups of the models in README.md and extremes."""
SMALL_KERNELS = ("plan_kernel", "combine_kernel", "received_kernel", "merge_lse_kernel", "compact_kernel", "rebudget_kernel")
"""They stream nothing through shared memory and have no choice of tiles: `FEW_SHAPES` tell all there is."""
FEW_SHAPES = (("fp16", 96, 2), ("bf16", 128, 7), ("fp32", 256, 8))
_BATCH, _KV_HEADS, _TOKENS, _ROWS = 2, 4, 4096, 32


@dataclass(frozen=True)
class Shipped:
    """A kernel as an operator launches it.

    Attributes:
        operator: that launches it, and how.
        dtype: of keys and values.
        head_dim: size of a head.
        group: query heads per KV head.
        launch: what is compiled.
    """

    operator: str
    dtype: str
    head_dim: int
    group: int
    launch: Launch

    @property
    def kernel(self) -> str:
        """The kernel's name."""
        return str(self.launch.kernel.__name__)


def shipped() -> Iterator[Shipped]:
    """Every kernel of every operator at every shape of `SHAPES`, the small ones at `FEW_SHAPES`; none twice."""
    seen: set[str] = set()
    for shape in SHAPES:
        for operator, call in _operators(DTYPES[shape[0]], *shape[1:]).items():
            for launch in launches_of(call):
                one = Shipped(operator, *shape, launch)
                constants = {name: value for name, value in launch.arguments.items() if name.isupper()}
                key = repr((one.kernel, shape[0], constants, launch.options))
                if key not in seen and (one.kernel not in SMALL_KERNELS or shape in FEW_SHAPES):
                    seen.add(key)
                    yield one


def static_counts() -> list[dict[str, object]]:
    """One row for each kernel, configuration and architecture; some 600 compilations of about a second.

    Returns:
        Objects with `operator`, `kernel`, `dtype`, `head_dim`, `group`, `capability`, `warps`, `registers` (per
        thread), `stack` (bytes per thread), `spills`, `shared` (bytes), `async_copies` and `matrix_instructions`
        (in the code, not executed).

    Raises:
        KernelError: one of them keeps something on the stack; the message says which and how much.
    """
    rows = [_row(one, capability, compile_launch(one.launch, capability)) for one in shipped() for capability in CAPABILITIES]
    spilling = [
        f"{row['kernel']} {row['dtype']} {row['head_dim']} sm_{row['capability']}: {row['stack']} bytes" for row in rows if row["stack"]
    ]
    if spilling:
        raise KernelError(f"expected no stack in any kernel, got {'; '.join(spilling)}; choose smaller tiles")
    return rows


def _row(one: Shipped, capability: int, found: Compiled) -> dict[str, object]:
    return {
        "operator": one.operator,
        "kernel": one.kernel,
        "dtype": one.dtype,
        "head_dim": one.head_dim,
        "group": one.group,
        "capability": capability,
        "warps": one.launch.options.get("num_warps", 4),
        "registers": found.registers,
        "stack": found.stack,
        "spills": found.spills,
        "shared": found.shared,
        "async_copies": found.async_copies,
        "matrix_instructions": found.matrix_instructions,
    }


def _operators(dtype: torch.dtype, head_dim: int, group: int) -> dict[str, Callable[[], object]]:
    """A call of each operator, on tensors without storage."""
    heads = _KV_HEADS * group
    cache = _real(dtype, _BATCH, _KV_HEADS, _TOKENS, head_dim)
    q = _real(dtype, _BATCH, heads, _ROWS, head_dim)
    segment = torch.empty(_BATCH, _TOKENS, dtype=torch.uint8, device="meta")
    first, limit, position = _integers(_BATCH), _integers(_BATCH, _ROWS), _integers(_BATCH)
    index, count = _integers(_BATCH, _KV_HEADS, 1024), _integers(_BATCH, _KV_HEADS)
    plain, keeping = _arena(dtype, head_dim, received=False), _arena(dtype, head_dim, received=True)

    def decode(arena: Arena, *, stats: bool) -> object:
        return decode_attention_triton(q[:, :, 0], arena, position, 0.1, stats)

    return {
        "decode_attention": lambda: decode(plain, stats=True),
        "decode_attention without statistics": lambda: decode(plain, stats=False),
        "decode_attention with received": lambda: decode(keeping, stats=True),
        "window_scores": lambda: window_scores_triton(q, cache, limit, first, None, 0.1, "mean"),
        "row_statistics": lambda: row_statistics_triton(q, cache, cache, segment, limit, first, 0.1),
        "received_attention": lambda: received_triton(q, plain, limit, _integers(heads), None, 0.1, _TOKENS),
        "compact": lambda: compact_triton(keeping, cache, cache, index, count, segment, first, position),
        "rebudget": lambda: rebudget_triton(keeping, index, count),
    }


def _arena(dtype: torch.dtype, head_dim: int, *, received: bool) -> Arena:
    slots = _BATCH * _KV_HEADS * _TOKENS
    k, runs = _real(dtype, slots, head_dim), _integers(_BATCH, _KV_HEADS)
    segment = torch.empty(slots, dtype=torch.uint8, device="meta")
    sums, queries = (_real(torch.float32, slots), _integers(slots)) if received else (None, None)
    return Arena(k, k, _integers(slots), segment, runs, runs, runs, sums, queries)


def _real(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _integers(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.int32, device="meta")
