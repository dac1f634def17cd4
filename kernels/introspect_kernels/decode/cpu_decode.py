"""Decode attention with head statistics over a ragged arena, compiled by Numba: one pass over keys and values.

A run is cut into chunks by its own length alone, each chunk is computed by one thread, and chunks are joined in order:
not a bit depends on the batch, its order or the number of threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, njit

from introspect_kernels.decode.cpu_call import BAD_SEGMENT, NEXT, STATUS, Call, chunk_size, scratch_arrays
from introspect_kernels.decode.cpu_chunk import IMAGE_PART, REST, SUMS, TOTAL, attend_chunk
from introspect_kernels.decode.cpu_combine import WHOLE, best_of, combine_head, write_masses, write_reals
from introspect_kernels.decode.cpu_scalars import address, as_float, take_next
from introspect_kernels.decode.packing import INDICES, REALS
from introspect_kernels.segments import NUM_SEGMENTS, Segment

_NUM_REALS, _NUM_INDICES = len(REALS), len(INDICES)
_IMAGE = int(Segment.IMAGE)


@njit
def attend(tag: Any, call: Call, scratch: Any, fields: int) -> None:
    """Take chunks until none is left; what they leave is joined by `finish`.

    Args:
        tag: an array whose dtype is that of queries, keys and values, as `as_float` takes them.
        call: what to compute.
        scratch: fp32 memory, `scratch_size` numbers.
        fields: address of the call's fields, shared by threads: `next` counts up, `status` is set where something is wrong.
    """
    group, head_dim = call.group, call.head_dim
    queries = carray(address(call.q), (call.runs, group, head_dim), tag.dtype)
    keys = carray(address(call.k), (call.slots, head_dim), tag.dtype)
    values = carray(address(call.v), (call.slots, head_dim), tag.dtype)
    position = carray(address(call.position), (call.slots,), np.int32)
    segment = carray(address(call.segment), (call.slots,), np.uint8)
    start, length = carray(address(call.start), (call.runs,), np.int32), carray(address(call.length), (call.runs,), np.int32)
    query = carray(address(call.query), (call.runs // call.kv_heads,), np.int32)
    scale = np.float32(carray(address(call.scale), (1,), np.float64)[0])
    shared = carray(address(fields), (STATUS + 1,), np.int64)
    sums, mass, out, kept, best, retained = scratch_arrays(call, scratch)
    scaled = np.empty((group, head_dim), np.float32)
    fleeting = np.empty((group, 0 if call.keep else call.size), np.float32)
    ends = np.empty(call.size, np.int64)
    mine = take_next(fields + 8 * NEXT)
    item = 0
    for run in range(call.runs):
        count = np.int64(length[run])
        size = chunk_size(count)
        for c in range((count + size - 1) // size):
            if item == mine:
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
                mine = take_next(fields + 8 * NEXT)
            item += 1


@njit(error_model="numpy")  # where all is masked, shares are NaN, not an error
def finish(call: Call, scratch: Any) -> None:
    """Join the chunks of every run, and write what is returned."""
    runs, group, head_dim = call.runs, call.group, call.head_dim
    length = carray(address(call.length), (runs,), np.int32)
    sums, masses, parts, kept, best, retained = scratch_arrays(call, scratch)
    out = carray(address(call.out), (runs, group, head_dim), np.float32)
    measured = runs if call.measure else 0
    reals = carray(address(call.reals), (_NUM_REALS, measured, group), np.float32)
    mass = carray(address(call.mass), (measured, group, NUM_SEGMENTS), np.float32)
    indices = carray(address(call.indices), (_NUM_INDICES, measured, group), np.int32)
    kinds = carray(address(call.retained), (measured, NUM_SEGMENTS), np.int32)
    joined, image = np.empty((2, SUMS), np.float64), np.empty(head_dim, np.float32)
    weights, shares = np.empty((call.chunks, 2), np.float64), np.empty((call.chunks, group, 2), np.float32)
    for run in range(runs):
        size = chunk_size(np.int64(length[run]))
        chunks = (length[run] + size - 1) // size
        if call.measure:
            kinds[run] = 0
            for c in range(chunks):
                for s in range(NUM_SEGMENTS):
                    kinds[run, s] += retained[run, c, s]
        for g in range(group):
            share = combine_head(chunks, g, call.measure != 0, sums[run], parts[run], weights, joined, out[run, g], image)
            if call.measure:
                write_reals(joined, share, chunks == 0, kinds[run, _IMAGE] > 0, reals[:, run, g])
                write_masses(chunks, g, weights, masses[run], joined, mass[run, g])
                indices[0, run, g], indices[1, run, g] = best_of(chunks, g, sums[run], best[run])
            if call.keep:
                for c in range(chunks):
                    for part in range(2):
                        shares[c, g, part] = weights[c, part] / joined[WHOLE, TOTAL]
        if call.keep:
            _spread(call, run, chunks, size, kept[run], shares)


@njit
def _spread(call: Call, run: int, chunks: int, size: int, e: Any, shares: Any) -> None:
    """Add to every entry of a run but the query's own what it got; `shares` turn e into probabilities."""
    start, length = carray(address(call.start), (call.runs,), np.int32), carray(address(call.length), (call.runs,), np.int32)
    query = carray(address(call.query), (call.runs // call.kv_heads,), np.int32)[run // call.kv_heads]
    position = carray(address(call.position), (call.slots,), np.int32)
    segment = carray(address(call.segment), (call.slots,), np.uint8)
    received = carray(address(call.received), (call.slots,), np.float32)
    queries = carray(address(call.queries), (call.slots,), np.int32)
    for c in range(chunks):
        for j in range(min(size, length[run] - c * size)):
            slot = np.int64(start[run]) + c * size + j
            if position[slot] == query:
                continue
            part = IMAGE_PART if segment[slot] == _IMAGE else REST
            p = np.float32(0)
            for g in range(call.group):
                p += e[c, g, j] * shares[c, g, part]
            received[slot] += p
            queries[slot] += 1
