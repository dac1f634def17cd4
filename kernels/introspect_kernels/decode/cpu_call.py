"""What a call of the compiled CPU path is told, and how its memory is laid out."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import carray, njit
from numba.np.unsafe.ndarray import to_fixed_tuple

from introspect_kernels.decode.cpu_chunk import SUMS
from introspect_kernels.decode.cpu_scalars import address
from introspect_kernels.segments import NUM_SEGMENTS

CHUNK = 1024  # entries: their scores for a group of eight heads stay in a second-level cache
MOST_CHUNKS = 64  # of a run: beyond, chunks grow
WELL, OUTSIDE, BAD_SEGMENT, LARGE = 1, 2, 3, 4  # not 0, which a compiled function returns when it fails

ALL, ATTEND, SPREAD = 0, 1, 2


class Call(NamedTuple):
    """One call: sizes, and addresses of contiguous memory. After the fields a zero for each run counts its chunks.

    Attributes:
        runs: (sequence, KV head) pairs.
        kv_heads: runs of a sequence.
        group: query heads of a run.
        head_dim: size of a head.
        slots: of the arena.
        measure: whether statistics are wanted; the output is the same to the bit without.
        keep: whether the entries' received attention grows.
        scale: the factor on the scores, fp64.
        q: `[runs, group, head_dim]`, of the type of keys and values.
        k: `[slots, head_dim]`.
        v: likewise.
        position: int32 `[slots]`.
        segment: uint8 `[slots]`.
        start: int32 `[runs]`.
        length: int32 `[runs]`.
        query: int32 `[runs / kv_heads]`, the queries' token indices.
        received: fp32 `[slots]`, or 0.
        queries: int32 `[slots]`, or 0.
        out: fp32 `[runs, group, head_dim]`, written.
        reals: fp32 `[11, runs, group]`, written, as the next three are, only with `measure`.
        mass: fp32 `[runs, group, 6]`.
        indices: int32 `[2, runs, group]`.
        retained: int32 `[runs, 6]`.
        worth_threads: products of a key's number with a query's from which on a call goes to several threads.
        chunks: of the run that has most; found by `survey`.
        size: entries of the largest chunk, likewise.
        scratch: of memory that chunks leave their sums in, `scratch_size` numbers of four bytes.
        next: the chunk to be taken next.
        status: what threads have found wrong.
        source: which sources the machine code is of.
        stage: `ALL`, `ATTEND` or `SPREAD`.
    """

    runs: int
    kv_heads: int
    group: int
    head_dim: int
    slots: int
    measure: int
    keep: int
    scale: float
    q: int
    k: int
    v: int
    position: int
    segment: int
    start: int
    length: int
    query: int
    received: int
    queries: int
    out: int
    reals: int
    mass: int
    indices: int
    retained: int
    worth_threads: int
    chunks: int = 0
    size: int = 0
    scratch: int = 0
    next: int = 0
    status: int = WELL
    source: int = 0
    stage: int = 0


FIELDS = len(Call._fields)
KEEP, SCALE, CHUNKS, SIZE, SCRATCH, NEXT, STATUS, SOURCE, STAGE = (
    Call._fields.index(name) for name in ("keep", "scale", "chunks", "size", "scratch", "next", "status", "source", "stage")
)


@njit
def call_at(fields: int) -> Call:
    """The call whose fields lie at an address as int64 numbers."""
    return Call(*to_fixed_tuple(carray(address(fields), (FIELDS,), np.int64), FIELDS))


@njit
def chunk_size(length: int) -> int:
    """Entries in each chunk of a run, from its length alone."""
    return max(CHUNK, (length + MOST_CHUNKS - 1) // MOST_CHUNKS)


@njit
def survey(call: Call) -> Any:
    """What has to be known before memory is taken.

    Returns:
        `WELL`; `LARGE` where threads are worth it; `OUTSIDE` where a run leaves the arena. Then chunks of the run that
        has most, and entries of the largest chunk.
    """
    start, length = carray(address(call.start), (call.runs,), np.int32), carray(address(call.length), (call.runs,), np.int32)
    most, largest, total = np.int64(0), np.int64(0), np.int64(0)
    for run in range(call.runs):
        first, count = np.int64(start[run]), np.int64(length[run])
        if first < 0 or count < 0 or first + count > call.slots:
            return OUTSIDE, 0, 0
        size = chunk_size(count)
        most, largest, total = max(most, (count + size - 1) // size), max(largest, min(count, size)), total + count
    return LARGE if total * call.group * call.head_dim >= call.worth_threads else WELL, most, largest


@njit
def scratch_size(call: Call) -> int:
    """Numbers of four bytes that chunks leave their sums in."""
    chunks = call.runs * call.chunks
    for_head = 2 * SUMS + NUM_SEGMENTS + 2 * call.head_dim + 2 + (call.size + 2 if call.keep else 0)
    return chunks * (call.group * for_head + NUM_SEGMENTS)


@njit
def scratch_arrays(call: Call, scratch: Any) -> Any:
    """Scratch as arrays, `[runs, chunks, ...]` each.

    Returns:
        Sums, masses, outputs, positions of the largest, retained entries; and where e is kept, e and what its parts weigh.
    """
    runs, chunks, group = call.runs, call.chunks, call.group
    heads = runs * chunks * group
    kept_heads = heads if call.keep else 0
    sums, rest = _cut(scratch, heads * 2 * SUMS)
    mass, rest = _cut(rest, heads * NUM_SEGMENTS)
    out, rest = _cut(rest, heads * 2 * call.head_dim)
    best, rest = _cut(rest, heads * 2)
    retained, rest = _cut(rest, runs * chunks * NUM_SEGMENTS)
    shares, kept = _cut(rest, kept_heads * 2)
    return (
        sums.reshape((runs, chunks, group, 2, SUMS)),
        mass.reshape((runs, chunks, group, NUM_SEGMENTS)),
        out.reshape((runs, chunks, 2, group, call.head_dim)),
        best.view(np.int32).reshape((runs, chunks, group, 2)),
        retained.view(np.int32).reshape((runs, chunks, NUM_SEGMENTS)),
        kept.reshape((runs, chunks, group, call.size if call.keep else 0)),
        shares.reshape((runs, chunks, group, 2 if call.keep else 0)),
    )


@njit
def _cut(memory: Any, count: int) -> Any:
    """The first numbers, and those after."""
    return memory[:count], memory[count:]
