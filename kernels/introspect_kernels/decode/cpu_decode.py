"""Decode attention with head statistics over a ragged arena, compiled by Numba: one pass over keys and values.

A run is cut into chunks by its own length alone, each chunk is computed by one thread, and chunks are joined in order by whoever
computed a run's last: not a bit depends on the batch, its order or the number of threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, njit

from introspect_kernels.decode.cpu_call import BAD_SEGMENT, FIELDS, NEXT, SCALE, STATUS, WELL, Call, chunk_size, scratch_arrays
from introspect_kernels.decode.cpu_chunk import attend_chunk
from introspect_kernels.decode.cpu_finish import finish
from introspect_kernels.decode.cpu_scalars import address, as_float, take_next


@njit
def attend(tag: Any, call: Call, scratch: Any, fields: int) -> None:
    """Take chunks until none is left, and join those of a run where it was the run's last.

    Args:
        tag: an array whose dtype is that of queries, keys and values, as `as_float` takes them.
        call: what to compute.
        scratch: fp32 memory, `scratch_size` numbers.
        fields: address of the call's fields, shared by threads: `next` and the runs' counts grow, `status` is set where something is wrong.
    """
    group, head_dim = call.group, call.head_dim
    queries = carray(address(call.q), (call.runs, group, head_dim), tag.dtype)
    keys = carray(address(call.k), (call.slots, head_dim), tag.dtype)
    values = carray(address(call.v), (call.slots, head_dim), tag.dtype)
    position = carray(address(call.position), (call.slots,), np.int32)
    segment = carray(address(call.segment), (call.slots,), np.uint8)
    start, length = carray(address(call.start), (call.runs,), np.int32), carray(address(call.length), (call.runs,), np.int32)
    query = carray(address(call.query), (call.runs // call.kv_heads,), np.int32)
    scale = np.float32(carray(address(fields + 8 * SCALE), (1,), np.float64)[0])
    shared = carray(address(fields), (STATUS + 1,), np.int64)
    sums, mass, out, best, retained, kept, _ = scratch_arrays(call, scratch)
    scaled = np.empty((group, head_dim), np.float32)
    fleeting = np.empty((group, 0 if call.keep else call.size), np.float32)
    ends = np.empty(call.size, np.int64)
    mine = take_next(fields + 8 * NEXT)
    item = 0
    for run in range(call.runs):
        count = np.int64(length[run])
        size = chunk_size(count)
        chunks = (count + size - 1) // size
        for c in range(max(1, chunks)):  # a run without entries has to be finished as well
            if item == mine:
                if chunks:
                    for g in range(group):
                        for i in range(head_dim):
                            scaled[g, i] = as_float(queries[run, g, i]) * scale
                    low = c * size
                    if not attend_chunk(
                        scaled,
                        keys,
                        values,
                        position,
                        segment,
                        np.int64(start[run]) + low,
                        min(size, count - low),
                        query[run // call.kv_heads],
                        call.measure != 0,
                        kept[run, c] if call.keep else fleeting,
                        ends,
                        sums[run, c],
                        mass[run, c],
                        best[run, c],
                        retained[run, c],
                        out[run, c],
                    ):
                        shared[STATUS] = BAD_SEGMENT
                if take_next(fields + 8 * (FIELDS + run)) + 1 >= chunks and shared[STATUS] == WELL:
                    finish(call, scratch, run, chunks)
                mine = take_next(fields + 8 * NEXT)
            item += 1
