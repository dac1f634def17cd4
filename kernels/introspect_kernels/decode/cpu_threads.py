"""Runs compiled work in torch's own threads.

A second set of threads beside torch's would fight with it for the same cores: both wait by spinning.
"""

from __future__ import annotations

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch

_Work = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)


@cache
def _openmp() -> Any:
    """GNU OpenMP's entry for parallel regions in the library that torch has loaded; None where torch was built with another.

    It is what compilers call for `#pragma omp parallel`, so its form does not change.
    """
    if "OpenMP" not in torch.__config__.parallel_info() or not hasattr(os, "RTLD_NOLOAD"):
        return None
    try:
        parallel = ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOLOAD | os.RTLD_NOW).GOMP_parallel
    except (OSError, AttributeError):
        return None
    parallel.argtypes, parallel.restype = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint), None
    return parallel


@cache
def _executor(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads of our own, where torch's are out of reach; by process, since threads do not survive a fork."""
    del process
    return ThreadPoolExecutor(threads, thread_name_prefix="introspect-attention")


def in_threads(work: int, argument: int, threads: int) -> None:
    """Call a C function in several threads at once, this one among them, and wait for all.

    Args:
        work: its address; it takes one int64.
        argument: what it is given.
        threads: how many at most.
    """
    parallel = _openmp()
    if parallel is not None:
        parallel(work, argument, threads, 0)
        return
    call = _Work(work)
    others = [_executor(os.getpid(), threads - 1).submit(call, argument) for _ in range(threads - 1)]
    call(argument)
    for other in others:
        other.result()
