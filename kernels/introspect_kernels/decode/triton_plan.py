"""The work list, built on the device: no length is ever read by the host, so one captured CUDA graph serves every step.

A run is cut into chunks whose borders depend on the run's length alone, never
on its neighbours: that is what makes results bitwise invariant to the batch.
Within a chunk each segment is a piece, the range from its first to its last
entry there, with the number of entries: fewer than the range is long where
segments alternate. Partial results are kept per piece, so the mass of a segment
is a sum over its own pieces and costs nothing in the attention kernel.

Piece `j` of chunk `c` is row `c * PIECES + j`; rows without a piece have a count of zero.
"""

import triton
import triton.language as tl

SMALL_CHUNK = 256
LARGE_CHUNK = 1024


@triton.jit
def chunk_size(length, SMALL: tl.constexpr, LARGE: tl.constexpr):
    """Entries per chunk for runs of a given length: at most 16 chunks up to 16 * LARGE, then chunks of LARGE."""
    size = tl.where(length > 16 * SMALL, 2 * SMALL, SMALL)
    return tl.where(length > 32 * SMALL, LARGE, size)


@triton.jit
def plan_kernel(
    segment,
    start,
    length,
    chunk_run,  # out, int32 [max_chunks]
    chunk_pieces,  # out, int32 [max_chunks]
    piece_low,  # out, int32 [max_chunks * PIECES], first entry, counted from the run's start
    piece_high,  # out, likewise, one past the last entry
    piece_count,  # out, likewise
    piece_segment,  # out, likewise
    run_chunk,  # out, int32 [runs + 1], first chunk of each run; the last is the number of chunks
    runs,
    RUNS_PAD: tl.constexpr,
    PIECES: tl.constexpr,
    SMALL: tl.constexpr,
    LARGE: tl.constexpr,
):
    """One program per possible chunk; those past the last one leave at once."""
    chunk = tl.program_id(0)
    each = tl.arange(0, RUNS_PAD)
    lengths = tl.load(length + each, mask=each < runs, other=0)
    size = chunk_size(lengths, SMALL, LARGE)
    chunks = (lengths + size - 1) // size
    ends = tl.cumsum(chunks, 0)
    total = tl.sum(chunks, 0)
    if chunk == 0:
        tl.store(run_chunk + each + 1, ends, mask=each < runs)
        tl.store(run_chunk, 0)
    if chunk < total:
        run = tl.sum((ends <= chunk).to(tl.int32), 0)
        before = tl.sum(tl.where(each < run, chunks, 0), 0)
        entries = tl.load(length + run)
        step = chunk_size(entries, SMALL, LARGE)
        low = (chunk - before) * step
        high = tl.minimum(low + step, entries)
        tl.store(chunk_run + chunk, run)
        found = 0
        if PIECES == 1:
            tl.store(piece_low + chunk, low)
            tl.store(piece_high + chunk, high)
            tl.store(piece_count + chunk, high - low)
            tl.store(piece_segment + chunk, 0)
            found = 1
        else:
            entry = low + tl.arange(0, LARGE)
            origin = tl.load(segment + tl.load(start + run) + entry, mask=entry < high, other=255)
            for kind in tl.static_range(PIECES):
                here = origin == kind
                count = tl.sum(here.to(tl.int32), 0)
                row = chunk * PIECES + found  # of a kind that is not there the next one takes the place
                tl.store(piece_low + row, tl.min(tl.where(here, entry, high), 0))
                tl.store(piece_high + row, tl.max(tl.where(here, entry + 1, low), 0))
                tl.store(piece_count + row, count)
                tl.store(piece_segment + row, kind)
                found += (count > 0).to(tl.int32)
            rest = tl.arange(0, 8)
            tl.store(piece_count + chunk * PIECES + rest, tl.zeros([8], tl.int32), mask=(rest >= found) & (rest < PIECES))
        tl.store(chunk_pieces + chunk, found)


def max_chunks(slots: int, runs: int) -> int:
    """An upper bound on the chunks of runs that do not overlap, from what the host knows."""
    return min(slots // SMALL_CHUNK + runs, 16 * runs + slots // LARGE_CHUNK)
