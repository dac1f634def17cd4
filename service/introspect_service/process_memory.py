"""Settings of the process's memory that keep a service small and even."""

from __future__ import annotations

import ctypes
import gc
import sys

ARENAS = 2
"""Heaps of glibc's allocator. It would make up to eight a core, each of which keeps what its threads have freed."""

_M_ARENA_MAX = -8


def bound_arenas() -> None:
    """Let glibc use `ARENAS` heaps; call it before threads start. Elsewhere than on glibc nothing happens."""
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, ARENAS)


def settle() -> None:
    """What is there now stays for good: the garbage collector looks at it no more, which spares answers its longest pauses."""
    gc.collect()
    gc.freeze()
