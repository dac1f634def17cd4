"""Merge the pieces of each head into its output and statistics.

With x = s - m, in base 2, a piece holds m = max s, l = sum 2^x, t = sum 2^x x,
q = sum 4^x, and sums linear in 2^x. With a = 2^(m - M) they merge as l = sum a l,
t = sum a (t + (m - M) l), q = sum a^2 q. Then lse = ln 2 (M + log2 l), entropy =
ln 2 (log2 l - t / l), sum p^2 = q / l^2 and the largest p = 1 / l; the same l and t
over the image's pieces alone give the image's own entropy and maximum.

The order of summation depends on the run alone. Where the pieces do not account
for every entry (a segment that does not exist, runs that overlap), all reals are
NaN and all indices -1: unknown, not plausible.
"""

import triton
import triton.language as tl

from introspect_kernels.decode.triton_attend import NO_INDEX, NOTHING

IMAGE = tl.constexpr(2)  # segments.Segment.IMAGE
LN2 = tl.constexpr(0.6931471805599453)
WINDOW = tl.constexpr(10)  # statistics.WINDOW
FAR = tl.constexpr(1 << 30)
LANES = tl.constexpr(32)  # pieces merged at a time


@triton.jit
def combine_kernel(
    q,
    k,
    start,
    length,
    run_chunk,
    piece_count,
    piece_segment,
    part_out,
    part_real,
    part_index,
    position,
    query_position,
    out,  # out, [heads, HEAD_DIM]
    reals,  # out, fp32 [11, heads], in the order of triton_host.REALS
    mass,  # out, fp32 [heads, PIECES]
    indices,  # out, int32 [2, heads]
    retained,  # out, int32 [runs, PIECES]
    scale,
    kv_heads,
    chunk_limit,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_PAD: tl.constexpr,
    PIECES: tl.constexpr,
    STATS: tl.constexpr,
):
    """One program for each query head of each sequence."""
    head = tl.program_id(0)
    num_heads = tl.num_programs(0)
    run = head // GROUP
    member = head % GROUP
    field = chunk_limit * PIECES * GROUP
    first = tl.load(run_chunk + run) * PIECES
    last = tl.minimum(tl.load(run_chunk + run + 1), chunk_limit) * PIECES
    lanes = tl.arange(0, LANES)
    dims = tl.arange(0, HEAD_PAD)
    kinds = tl.arange(0, 8)

    tops = tl.full([LANES], NOTHING, tl.float32)
    image_tops = tl.full([LANES], NOTHING, tl.float32)
    for at in range(first, last, LANES):
        piece = at + lanes
        present = tl.load(piece_count + piece, mask=piece < last, other=0) > 0
        m = tl.load(part_real + piece * GROUP + member, mask=present, other=NOTHING)
        tops = tl.maximum(tops, m)
        if STATS:
            kind = tl.load(piece_segment + piece, mask=present, other=-1)
            image_tops = tl.maximum(image_tops, tl.where(kind == IMAGE, m, NOTHING))
    top = tl.max(tops, 0)
    image_top = tl.max(image_tops, 0)

    whole = tl.zeros([HEAD_PAD], tl.float32)
    image_part = tl.zeros([HEAD_PAD], tl.float32)
    sum_l = tl.zeros([LANES], tl.float32)
    sum_t = tl.zeros([LANES], tl.float32)
    sum_q = tl.zeros([LANES], tl.float32)
    sum_far = tl.zeros([LANES], tl.float32)
    image_l = tl.zeros([LANES], tl.float32)
    image_t = tl.zeros([LANES], tl.float32)
    best = tl.full([LANES], NO_INDEX, tl.int32)
    image_best = tl.full([LANES], NO_INDEX, tl.int32)
    counted = tl.zeros([LANES], tl.int32)
    by_kind = tl.zeros([8], tl.float32)
    count_by_kind = tl.zeros([8], tl.int32)
    for at in range(first, last, LANES):
        piece = at + lanes
        part = piece * GROUP + member
        count = tl.load(piece_count + piece, mask=piece < last, other=0)
        present = count > 0
        m = tl.load(part_real + part, mask=present, other=NOTHING)
        weight = tl.where(present, tl.exp2(m - top), 0.0)
        norm_part = tl.load(part_real + field + part, mask=present, other=0.0)
        tile = tl.load(part_out + part[:, None] * HEAD_DIM + dims[None, :], mask=present[:, None] & (dims < HEAD_DIM)[None, :], other=0.0)
        weighted = weight[:, None] * tile
        whole += tl.sum(weighted, 0)
        sum_l += weight * norm_part
        counted += count
        if STATS:
            kind = tl.load(piece_segment + piece, mask=present, other=-1)
            t = tl.load(part_real + 2 * field + part, mask=present, other=0.0)
            square = tl.load(part_real + 3 * field + part, mask=present, other=0.0)
            far = tl.load(part_real + 4 * field + part, mask=present, other=0.0)
            index = tl.load(part_index + part, mask=present, other=NO_INDEX)
            sum_t += weight * (t + (m - top) * norm_part)
            sum_q += weight * weight * square
            sum_far += weight * far
            best = tl.minimum(best, tl.where(m == top, index, NO_INDEX))
            is_image = kind == IMAGE
            image_part += tl.sum(tl.where(is_image[:, None], weighted, 0.0), 0)
            image_gap = tl.where(is_image, m - image_top, 0.0)
            image_weight = tl.where(is_image, tl.exp2(image_gap), 0.0)
            image_l += image_weight * norm_part
            image_t += image_weight * (t + image_gap * norm_part)
            image_best = tl.minimum(image_best, tl.where(is_image & (m == image_top), index, NO_INDEX))
            of_kind = kind[:, None] == kinds[None, :]
            by_kind += tl.sum(tl.where(of_kind, (weight * norm_part)[:, None], 0.0), 0)
            count_by_kind += tl.sum(tl.where(of_kind, count[:, None], 0), 0)

    nan = float("nan")
    entries = tl.load(length + run)
    empty = entries == 0
    base = tl.load(start + run).to(tl.int64)
    asked = tl.load(query_position + run // kv_heads)
    newest = tl.load(position + base + entries - 1, mask=entries > 0, other=-1)
    complete = (tl.sum(counted, 0) == entries) & (newest <= asked)
    found = tl.sum(sum_l, 0)  # zero where every score is -inf
    norm = tl.where(complete & (empty | (found > 0)), tl.where(empty, 1.0, found), nan)
    tl.store(out + head * HEAD_DIM + dims, (whole / norm).to(out.dtype.element_ty), mask=dims < HEAD_DIM)
    if STATS:
        lse2 = tl.where(empty, float("-inf"), top + tl.log2(norm))
        denominator = tl.where(empty, nan, norm)
        image_sum = tl.sum(image_l, 0)  # at least 1 where there is an image entry
        image_norm = tl.where(complete & (image_sum > 0), image_sum, nan)
        whole_square = tl.sum(whole * whole, 0)
        share = tl.sqrt(tl.sum(image_part * image_part, 0) / tl.where(whole_square > 0, whole_square, nan))
        query = tl.load(q + head * HEAD_DIM + dims, mask=dims < HEAD_DIM, other=0.0).to(tl.float32)
        p, behind = _latest(query, k, position, base, entries, asked, dims, scale, lse2, HEAD_DIM)
        tl.store(reals + head, lse2 * LN2)
        tl.store(reals + num_heads + head, (tl.log2(denominator) - tl.sum(sum_t, 0) / denominator) * LN2)
        tl.store(reals + 2 * num_heads + head, tl.sum(sum_q, 0) / (denominator * denominator))
        tl.store(reals + 3 * num_heads + head, 1.0 / denominator)
        tl.store(reals + 4 * num_heads + head, (tl.log2(image_norm) - tl.sum(image_t, 0) / image_norm) * LN2)
        tl.store(reals + 5 * num_heads + head, 1.0 / image_norm)
        tl.store(reals + 6 * num_heads + head, tl.where(image_norm == image_norm, share, nan))
        tl.store(reals + 7 * num_heads + head, tl.where(tl.max((behind == 0).to(tl.int32), 0) > 0, _at(p, behind, 0), nan))
        tl.store(reals + 8 * num_heads + head, tl.where(tl.max((behind == 1).to(tl.int32), 0) > 0, _at(p, behind, 1), nan))
        tl.store(reals + 9 * num_heads + head, tl.sum(sum_far, 0) / denominator)
        # Beyond the window every distance counts as its width: what the near ones lack is taken off.
        lacking = tl.sum(tl.where(behind < WINDOW, p * (WINDOW - behind), 0.0), 0)
        tl.store(reals + 10 * num_heads + head, tl.where(denominator == denominator, WINDOW - lacking, nan))
        tl.store(mass + head * PIECES + kinds, by_kind / denominator, mask=kinds < PIECES)
        known = (norm == norm) & (entries > 0)
        tl.store(indices + head, tl.where(known, tl.min(best, 0), -1))
        tl.store(indices + num_heads + head, tl.where(image_norm == image_norm, tl.min(image_best, 0), -1))
        if member == 0:
            tl.store(retained + run * PIECES + kinds, tl.where(complete, count_by_kind, -1), mask=kinds < PIECES)


@triton.jit
def _latest(query, k, position, base, entries, asked, dims, scale, lse2, HEAD_DIM: tl.constexpr):
    """Probability and distance of a run's last 16 entries.

    Positions ascend and none is after the query's, so whatever is nearer than the window is among them; reading
    their keys again costs less than sums in every tile. Where there are fewer, the distance is out of reach.
    """
    entry = entries - 16 + tl.arange(0, 16)
    there = entry >= 0
    key = tl.load(k + (base + entry)[:, None] * HEAD_DIM + dims[None, :], mask=there[:, None] & (dims < HEAD_DIM)[None, :], other=0.0)
    score = tl.sum(query[None, :] * key.to(tl.float32), 1) * scale
    p = tl.exp2(tl.where(there, score - lse2, 0.0))
    return p, tl.where(there, asked - tl.load(position + base + entry, mask=there, other=0), FAR)


@triton.jit
def _at(p, behind, distance: tl.constexpr):
    return tl.sum(tl.where(behind == distance, p, 0.0), 0)
