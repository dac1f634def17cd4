"""What is returned of a run once all of its chunks are there, and what its entries keep; compiled by Numba."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, njit

from introspect_kernels.decode.cpu_call import Call, chunk_size, scratch_arrays
from introspect_kernels.decode.cpu_chunk import IMAGE_PART, REST, SUMS, TOTAL
from introspect_kernels.decode.cpu_combine import WHOLE, best_of, combine_head, write_masses, write_reals
from introspect_kernels.decode.cpu_scalars import address
from introspect_kernels.decode.packing import INDICES, REALS
from introspect_kernels.segments import NUM_SEGMENTS, Segment

_NUM_REALS, _NUM_INDICES = len(REALS), len(INDICES)
_IMAGE = int(Segment.IMAGE)


@njit(error_model="numpy")  # where all is masked, shares are NaN, not an error
def finish(call: Call, scratch: Any, run: int, chunks: int) -> None:
    """Join the chunks of a run, and write what is returned of it."""
    runs, group, head_dim = call.runs, call.group, call.head_dim
    sums, masses, parts, best, retained, _, shares = scratch_arrays(call, scratch)
    out = carray(address(call.out), (runs, group, head_dim), np.float32)
    measured = runs if call.measure else 0
    reals = carray(address(call.reals), (_NUM_REALS, measured, group), np.float32)
    mass = carray(address(call.mass), (measured, group, NUM_SEGMENTS), np.float32)
    indices = carray(address(call.indices), (_NUM_INDICES, measured, group), np.int32)
    kinds = carray(address(call.retained), (measured, NUM_SEGMENTS), np.int32)
    joined, image, weights = np.empty((2, SUMS), np.float64), np.empty(head_dim, np.float32), np.empty((chunks, 2), np.float64)
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
                    shares[run, c, g, part] = weights[c, part] / joined[WHOLE, TOTAL]


@njit
def spread(call: Call, scratch: Any) -> None:
    """Add to every entry but each query's own what it got: e times its part's share is its probability."""
    start, length = carray(address(call.start), (call.runs,), np.int32), carray(address(call.length), (call.runs,), np.int32)
    query = carray(address(call.query), (call.runs // call.kv_heads,), np.int32)
    position = carray(address(call.position), (call.slots,), np.int32)
    segment = carray(address(call.segment), (call.slots,), np.uint8)
    received = carray(address(call.received), (call.slots,), np.float32)
    queries = carray(address(call.queries), (call.slots,), np.int32)
    _, _, _, _, _, e, shares = scratch_arrays(call, scratch)
    for run in range(call.runs):
        count = np.int64(length[run])
        size = chunk_size(count)
        for j in range(count):
            slot, c = np.int64(start[run]) + j, j // size
            if position[slot] == query[run // call.kv_heads]:
                continue
            part = IMAGE_PART if segment[slot] == _IMAGE else REST
            p = np.float32(0)
            for g in range(call.group):
                p += e[run, c, g, j % size] * shares[run, c, g, part]
            received[slot] += p
            queries[slot] += 1
