"""Split-K decode attention over the work list, with partial statistics (formulas: `triton_combine`).

One program takes chunk after chunk; per piece of a chunk it keeps an online
softmax in base 2 and, beside the output, sums that each cost one or two
instructions an entry. They stay spread over the tile's columns until the piece
ends: reducing them in every tile would cost ten times as much.
"""

# mypy: disable-error-code="assignment"
# Kernels grow tuples, whose types it takes for fixed.

import triton
import triton.language as tl

# What is excluded scores less than any entry, and a maximum starts in between: finite, since -inf - -inf is NaN.
NOTHING = tl.constexpr(-1.0e30)
EXCLUDED = tl.constexpr(-2.0e30)
NO_INDEX = tl.constexpr(2147483647)
ROWS = tl.constexpr(16)  # query heads of a group, padded: the matrix instruction takes 16


@triton.jit
def attend_kernel(
    q,
    k,
    v,
    position,
    segment,
    start,
    query_position,
    chunk_run,
    chunk_pieces,
    piece_low,
    piece_high,
    piece_count,
    piece_segment,
    run_chunk,
    part_out,  # out, fp32 [pieces, GROUP, HEAD_DIM]
    part_real,  # out, fp32 [5, pieces, GROUP]: m, l, t, q, distance
    part_index,  # out, int32 [pieces, GROUP]: position of the maximum
    scores,  # out, fp32 [slots, GROUP], in base 2
    scale,  # of the scores in base 2
    runs,
    kv_heads,
    chunk_limit,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_PAD: tl.constexpr,
    PART: tl.constexpr,  # dimensions of a head multiplied at a time
    PIECES: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
    STATS: tl.constexpr,
    KEEP_SCORES: tl.constexpr,
    UPCAST: tl.constexpr,  # the interpreter's tl.dot is wrong for bf16
):
    """Each program takes every num_programs-th chunk."""
    rows = tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    dims = tl.arange(0, PART)
    is_head = rows < GROUP
    field = chunk_limit * PIECES * GROUP
    total = tl.minimum(tl.load(run_chunk + runs), chunk_limit)
    for chunk in range(tl.program_id(0), total, tl.num_programs(0)):
        run = tl.load(chunk_run + chunk)
        asked = tl.load(query_position + run // kv_heads)
        first = tl.load(start + run).to(tl.int64)
        keys_of_run = k + first * HEAD_DIM
        values_of_run = v + first * HEAD_DIM
        heads = run * GROUP + rows  # query head g of KV head r is head r * GROUP + g of the batch
        query = ()
        for at in tl.static_range(0, HEAD_PAD, PART):
            dim = at + dims[None, :]
            of_query = tl.load(q + heads[:, None] * HEAD_DIM + dim, mask=is_head[:, None] & (dim < HEAD_DIM), other=0.0)
            if UPCAST:
                of_query = of_query.to(tl.float32)
            query += (of_query,)
        for piece in range(tl.load(chunk_pieces + chunk)):
            row = chunk * PIECES + piece
            low = tl.load(piece_low + row)
            high = tl.load(piece_high + row)
            kind = tl.load(piece_segment + row)
            mixed = tl.load(piece_count + row) < high - low

            out = ()
            for _ in tl.static_range(0, HEAD_PAD, PART):
                out += (tl.zeros([ROWS, PART], tl.float32),)
            top = tl.full([ROWS], NOTHING, tl.float32)
            sum_p = tl.zeros([ROWS, BLOCK], tl.float32)
            sum_px = tl.zeros([ROWS, BLOCK], tl.float32)
            sum_pp = tl.zeros([ROWS, BLOCK], tl.float32)
            sum_far = tl.zeros([ROWS, BLOCK], tl.float32)
            best = tl.full([ROWS, BLOCK], NO_INDEX, tl.int32)

            for offset in tl.range(low, high, BLOCK, num_stages=STAGES):
                entry = offset + columns
                inside = entry < high
                score = tl.zeros([ROWS, BLOCK], tl.float32)
                for at in tl.static_range(0, HEAD_PAD, PART):
                    down = at + dims[:, None]
                    keys = tl.load(keys_of_run + entry[None, :] * HEAD_DIM + down, mask=inside[None, :] & (down < HEAD_DIM), other=0.0)
                    if UPCAST:
                        keys = keys.to(tl.float32)
                    score = tl.dot(query[at // PART], keys, score, input_precision="tf32x3")
                score *= scale
                ours = inside
                if STATS:
                    # Masked off where the piece is pure: then the load costs no wait.
                    ours = inside & (tl.load(segment + first + entry, mask=inside & mixed, other=kind).to(tl.int32) == kind)
                if KEEP_SCORES:
                    target = scores + first * GROUP + entry[None, :] * GROUP + rows[:, None]
                    tl.store(target, score, mask=is_head[:, None] & ours[None, :])
                # A score of -inf is raised to that: times its p of zero it would be NaN.
                score = tl.maximum(tl.where(ours[None, :], score, EXCLUDED), EXCLUDED, propagate_nan=tl.PropagateNan.ALL)
                highest = tl.maximum(top, tl.max(score, 1))
                shrink = tl.exp2(top - highest)[:, None]
                x = score - highest[:, None]
                p = tl.exp2(x)
                if STATS:
                    where = tl.load(position + first + entry, mask=inside, other=0)
                    far = (asked - where).to(tl.float32)[None, :]
                    sum_px = shrink * (sum_px + (top - highest)[:, None] * sum_p) + p * x
                    sum_pp = shrink * shrink * sum_pp + p * p
                    sum_far = shrink * sum_far + p * far
                    rises = (highest > top)[:, None]
                    best = tl.where(rises, tl.where(x == 0.0, where[None, :], NO_INDEX), best)
                sum_p = shrink * sum_p + p
                grown = ()
                for at in tl.static_range(0, HEAD_PAD, PART):
                    dim = at + dims[None, :]
                    values = tl.load(values_of_run + entry[:, None] * HEAD_DIM + dim, mask=inside[:, None] & (dim < HEAD_DIM), other=0.0)
                    if UPCAST:
                        values = values.to(tl.float32)
                    grown += (tl.dot(p.to(values.dtype), values, out[at // PART] * shrink, input_precision="tf32x3"),)
                out = grown
                top = highest

            part = row * GROUP + rows
            for at in tl.static_range(0, HEAD_PAD, PART):
                dim = at + dims[None, :]
                tl.store(part_out + part[:, None] * HEAD_DIM + dim, out[at // PART], mask=is_head[:, None] & (dim < HEAD_DIM))
            tl.store(part_real + part, top, mask=is_head)
            tl.store(part_real + field + part, tl.sum(sum_p, 1), mask=is_head)
            if STATS:
                tl.store(part_real + 2 * field + part, tl.sum(sum_px, 1), mask=is_head)
                tl.store(part_real + 3 * field + part, tl.sum(sum_pp, 1), mask=is_head)
                tl.store(part_real + 4 * field + part, tl.sum(sum_far, 1), mask=is_head)
                tl.store(part_index + part, tl.min(best, 1), mask=is_head)
