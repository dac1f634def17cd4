"""The compiled CPU path as a C function of one address, and where its machine code is kept.

Compiling takes long for each dtype, once: Numba keeps the code beside the sources, or in the user's cache
directory where it may not write there. It notices when the file of a function has changed, but not when that of another
function has which it calls; so the entry depends on a hash of all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numba import carray, cfunc, types

from introspect_kernels.decode.cpu_call import (
    ALL,
    ATTEND,
    CHUNKS,
    FIELDS,
    LARGE,
    SCRATCH,
    SIZE,
    SOURCE,
    SPREAD,
    STAGE,
    STATUS,
    WELL,
    call_at,
    scratch_size,
    survey,
)
from introspect_kernels.decode.cpu_decode import attend
from introspect_kernels.decode.cpu_finish import spread
from introspect_kernels.decode.cpu_scalars import address

_OF_ONE_ADDRESS = types.int64(types.int64)


def source_hash() -> int:
    """Changes with any line of the compiled sources, or of what they take their constants from."""
    here = Path(__file__).parent
    files = [*sorted(here.glob("cpu_*.py")), here / "packing.py", here.parent / "segments.py", here.parent / "statistics.py"]
    return int.from_bytes(hashlib.sha256(b"".join(file.read_bytes() for file in files)).digest()[:7], "big")


@cache
def called(kind: str) -> Callable[[int], int]:
    """`entry` as Python calls it."""
    function: Callable[[int], int] = entry(kind).ctypes  # made anew by every look at it
    return function


@cache
def entry(kind: str) -> Any:
    """The compiled path, made or loaded at the first call.

    It is one function with one call of each step, so that one machine code serves however many threads there are: compiled
    twice, the same source may sum in two orders.

    Args:
        kind: NumPy's name of the type that keys reach Numba as, see `cpu_scalars.as_float`.

    Returns:
        A C function of the address of a `Call`'s fields as int64 numbers. With `stage` `ALL` it does everything and returns
        `WELL`, `OUTSIDE` or `BAD_SEGMENT`; or `LARGE` when it has only filled in `chunks`, `size`, and under `scratch` how
        much of it is needed, because threads are worth it. Then stage `ATTEND` is for as many threads at once as call it,
        and where e is kept, `SPREAD` for one, afterwards.
    """
    tag, source = np.empty(0, kind), source_hash()

    @_compiled
    def function(fields: int) -> Any:
        numbers = carray(address(fields), (FIELDS,), np.int64)
        numbers[SOURCE] = source
        stage = numbers[STAGE]
        if stage == ALL:
            found, numbers[CHUNKS], numbers[SIZE] = survey(call_at(fields))
            if found == LARGE:
                numbers[SCRATCH] = scratch_size(call_at(fields))
            if found != WELL:
                return found
        call = call_at(fields)
        if stage == ALL:
            scratch = np.empty(scratch_size(call), np.float32)
        else:
            scratch = carray(address(call.scratch), (scratch_size(call),), np.float32)
        if stage != SPREAD:
            attend(tag, call, scratch, fields)
        if stage != ATTEND and call.keep and numbers[STATUS] == WELL:
            spread(call, scratch)
        return numbers[STATUS]

    return function


def _compiled(function: Callable[[int], Any]) -> Any:
    """A C function, whose machine code is kept where there is a place to keep it."""
    try:
        return cfunc(_OF_ONE_ADDRESS, cache=True)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache can be written to
        return cfunc(_OF_ONE_ADDRESS)(function)
