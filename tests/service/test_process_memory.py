"""The allocator's heaps are bounded, as many threads as there may be."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from introspect_service.process_memory import ARENAS

THREADS = 12
SCRIPT = f"""
import ctypes, sys, threading
if sys.argv[1] == "bounded":
    from introspect_service.process_memory import bound_arenas
    bound_arenas()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
together = threading.Barrier({THREADS})
def work():
    together.wait()
    for _ in range(200):
        libc.malloc(100_000)
    together.wait()
threads = [threading.Thread(target=work) for _ in range({THREADS})]
for thread in threads: thread.start()
for thread in threads: thread.join()
libc.fdopen.restype = ctypes.c_void_p
out = ctypes.c_void_p(libc.fdopen(1, b"w"))
libc.malloc_info(0, out)
libc.fflush(out)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has such heaps")
def test_threads_share_the_heaps_that_there_are():
    def heaps(how):
        run = subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, timeout=60, check=True)
        return run.stdout.count("<heap nr")

    assert heaps("bounded") <= ARENAS
    assert heaps("unbounded") > ARENAS, "what is bounded above would grow"
