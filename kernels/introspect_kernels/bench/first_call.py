"""How long the first call on a CPU takes: where it compiles, and where the machine code has been kept."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

from introspect_kernels.bench.problems import DTYPES
from introspect_kernels.errors import KernelError

_TIMED = """
import time, torch, introspect_kernels
start = time.perf_counter()
introspect_kernels.compile_ahead({dtype})
print(time.perf_counter() - start)
"""


def first_calls() -> dict[str, dict[str, float]]:
    """Seconds of `compile_ahead` in fresh processes, for each dtype: `compiled` in an empty cache directory, `loaded` from it after that.

    Raises:
        KernelError: a process failed; the message ends with what it wrote.
    """
    with tempfile.TemporaryDirectory() as folder:
        return {name: {how: _seconds(str(dtype), folder) for how in ("compiled", "loaded")} for name, dtype in DTYPES.items()}


def _seconds(dtype: str, folder: str) -> float:
    done = subprocess.run(  # noqa: S603 - this interpreter, and code from above
        [sys.executable, "-c", _TIMED.format(dtype=dtype)],
        env=os.environ | {"NUMBA_CACHE_DIR": folder},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise KernelError(f"compiling for {dtype} failed: {done.stderr[-500:]}")
    return round(float(done.stdout), 2)
