"""Head statistics of chosen prompt rows in Triton: one pass over the keys, then one over keys and values.

The recurrences of the first are those of online softmax in units of log2 with three
more sums: t = sum p x (entropy), p^2, and one for each linear statistic. The image
segment has a softmax of its own, since its entries may lie so far below the
largest score that they would vanish beside it. The second pass finds the image's
share of the output; both in one would take more registers than there are.
"""

# mypy: disable-error-code="assignment"
# Kernels grow tuples, whose types it takes for fixed.

from __future__ import annotations

import torch
import triton
import triton.language as tl

from introspect_kernels.decode.triton_choices import PART
from introspect_kernels.implementations import interpreted
from introspect_kernels.segments import NUM_SEGMENTS, Segment
from introspect_kernels.statistics import WINDOW
from introspect_kernels.window.fields import empty_fields
from introspect_kernels.window.triton_columns import LOG2_E, Tiles

BLOCK_ROWS = 16
BLOCK_KEYS = 32
"""Of a tile. With 64 the sums of a tile and its products do not fit the registers."""


@triton.jit
def row_statistics_kernel(
    q, k, segment, first, limit, reals, indices, mass,
    num_heads, rows, tokens, plane, scale,
    q_batch, q_head, q_row, k_batch, k_head, k_token,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr, IMAGE: tl.constexpr, NEAR: tl.constexpr, SEGMENTS: tl.constexpr, UPCAST: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """All but the image's share of the output; `plane` elements lie between fields.

    `reals [11, batch, rows, num_heads]`, `indices [2, ...]`, `mass [batch, rows, num_heads, 6]`.
    """
    b, h = tl.program_id(0) // num_heads, tl.program_id(0) % num_heads
    begin = tl.load(first + b)
    r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    reach = tl.load(limit + b * rows + r, mask=r < rows, other=-1)
    query = _queries(q + b.to(tl.int64) * q_batch + h * q_head, r, q_row, rows, HEAD_DIM, BLOCK_D, BLOCK_P, UPCAST)
    k_at = k + b.to(tl.int64) * k_batch + (h // GROUP).to(tl.int64) * k_head + begin.to(tl.int64) * k_token
    m = tl.full([BLOCK_R], -1e30, tl.float32)
    best = tl.full([BLOCK_R], -1, tl.int32)
    total = tl.zeros([BLOCK_R], tl.float32)
    weighted = tl.zeros([BLOCK_R], tl.float32)
    squares = tl.zeros([BLOCK_R], tl.float32)
    own = tl.zeros([BLOCK_R], tl.float32)
    previous = tl.zeros([BLOCK_R], tl.float32)
    distance = tl.zeros([BLOCK_R], tl.float32)
    near = tl.zeros([BLOCK_R], tl.float32)
    image_m = tl.full([BLOCK_R], -1e30, tl.float32)
    image_best = tl.full([BLOCK_R], -1, tl.int32)
    image_total = tl.zeros([BLOCK_R], tl.float32)
    image_weighted = tl.zeros([BLOCK_R], tl.float32)
    masses = tl.zeros([BLOCK_R, 8], tl.float32)
    for j in tl.range(0, tl.minimum(tokens - begin, tl.max(reach, 0) + 1), BLOCK_N, num_stages=STAGES):
        i = j + tl.arange(0, BLOCK_N)
        inside = begin + i < tokens
        s = _products(query, k_at, i, k_token, inside, HEAD_DIM, BLOCK_P, UPCAST) * scale
        source = tl.load(segment + b.to(tl.int64) * tokens + begin + i, mask=inside, other=255)
        # A score of -inf weighs nothing, and would make NaN of what it is multiplied with.
        visible = (i[None, :] <= reach[:, None]) & (s != float("-inf"))
        s = tl.where(visible, s, -1e30)

        tile_top = tl.max(s, 1)
        where = tl.min(tl.where(s == tile_top[:, None], i[None, :], 2147483647), 1)
        best = tl.where(tile_top > m, where, best)
        top = tl.maximum(m, tile_top)
        x = s - top[:, None]
        p = tl.where(visible, tl.exp2(x), 0.0)
        a = tl.exp2(m - top)
        # Entropy's sum is rescaled with the total as it was before this tile.
        weighted = a * (weighted + (m - top) * total) + tl.sum(p * x, 1)
        total = a * total + tl.sum(p, 1)
        squares = a * a * squares + tl.sum(p * p, 1)
        far = (reach[:, None] - i[None, :]).to(tl.float32)
        own = a * own + tl.sum(tl.where(far == 0.0, p, 0.0), 1)
        previous = a * previous + tl.sum(tl.where(far == 1.0, p, 0.0), 1)
        distance = a * distance + tl.sum(p * far, 1)
        near = a * near + tl.sum(p * tl.minimum(far, NEAR), 1)
        masses = masses * a[:, None]
        for one in tl.static_range(SEGMENTS):
            of_one = tl.sum(tl.where(source[None, :] == one, p, 0.0), 1)
            masses += tl.where(tl.arange(0, 8)[None, :] == one, of_one[:, None], 0.0)
        m = top

        is_image = visible & (source[None, :] == IMAGE)
        s = tl.where(is_image, s, -1e30)
        tile_top = tl.max(s, 1)
        where = tl.min(tl.where(s == tile_top[:, None], i[None, :], 2147483647), 1)
        image_best = tl.where(tile_top > image_m, where, image_best)
        image_top = tl.maximum(image_m, tile_top)
        x = s - image_top[:, None]
        within = tl.where(is_image, tl.exp2(x), 0.0)
        image_a = tl.exp2(image_m - image_top)
        image_weighted = image_a * (image_weighted + (image_m - image_top) * image_total) + tl.sum(within * x, 1)
        image_total = image_a * image_total + tl.sum(within, 1)
        image_m = image_top

    nan = float("nan")
    norm = tl.where(total > 0, total, nan)  # of nothing everything is absent
    image_norm = tl.where(image_total > 0, image_total, nan)
    lse = (m + tl.log2(norm)) * 0.6931471805599453
    to = (b * rows + r) * num_heads + h
    keep = r < rows
    # The order is window/fields.py's; `image_share_kernel` stores the plane in between.
    tl.store(reals + to, tl.where(reach < 0, float("-inf"), lse), mask=keep)
    tl.store(reals + plane + to, (tl.log2(norm) - weighted / norm) * 0.6931471805599453, mask=keep)
    tl.store(reals + 2 * plane + to, squares / (norm * norm), mask=keep)
    tl.store(reals + 3 * plane + to, 1.0 / norm, mask=keep)
    tl.store(reals + 4 * plane + to, (tl.log2(image_norm) - image_weighted / image_norm) * 0.6931471805599453, mask=keep)
    tl.store(reals + 5 * plane + to, 1.0 / image_norm, mask=keep)
    tl.store(reals + 7 * plane + to, own / norm, mask=keep)
    tl.store(reals + 8 * plane + to, tl.where(reach > 0, previous / norm, nan), mask=keep)
    tl.store(reals + 9 * plane + to, distance / norm, mask=keep)
    tl.store(reals + 10 * plane + to, near / norm, mask=keep)
    tl.store(indices + to, best, mask=keep)
    tl.store(indices + plane + to, image_best, mask=keep)
    column = tl.arange(0, 8)[None, :]
    mass_at = mass + to[:, None] * SEGMENTS + column
    tl.store(mass_at, masses / norm[:, None], mask=keep[:, None] & (column < SEGMENTS))


@triton.jit
def image_share_kernel(
    q, k, v, segment, first, limit, reals,
    num_heads, rows, tokens, plane, scale,
    q_batch, q_head, q_row, k_batch, k_head, k_token, v_batch, v_head, v_token,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr, IMAGE: tl.constexpr, UPCAST: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The plane of the image's share of the output, from the log-sum-exp that the other planes hold."""
    b, h = tl.program_id(0) // num_heads, tl.program_id(0) % num_heads
    begin = tl.load(first + b)
    r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    d = tl.arange(0, BLOCK_P)
    reach = tl.load(limit + b * rows + r, mask=r < rows, other=-1)
    to = (b * rows + r) * num_heads + h
    lse2 = tl.load(reals + to, mask=r < rows, other=0.0) * 1.4426950408889634
    query = _queries(q + b.to(tl.int64) * q_batch + h * q_head, r, q_row, rows, HEAD_DIM, BLOCK_D, BLOCK_P, UPCAST)
    k_at = k + b.to(tl.int64) * k_batch + (h // GROUP).to(tl.int64) * k_head + begin.to(tl.int64) * k_token
    v_at = v + b.to(tl.int64) * v_batch + (h // GROUP).to(tl.int64) * v_head + begin.to(tl.int64) * v_token
    out = ()
    image_out = ()
    for _ in tl.static_range(0, BLOCK_D, BLOCK_P):
        out += (tl.zeros([BLOCK_R, BLOCK_P], tl.float32),)
        image_out += (tl.zeros([BLOCK_R, BLOCK_P], tl.float32),)
    for j in tl.range(0, tl.minimum(tokens - begin, tl.max(reach, 0) + 1), BLOCK_N, num_stages=STAGES):
        i = j + tl.arange(0, BLOCK_N)
        inside = begin + i < tokens
        s = _products(query, k_at, i, k_token, inside, HEAD_DIM, BLOCK_P, UPCAST) * scale
        visible = i[None, :] <= reach[:, None]
        source = tl.load(segment + b.to(tl.int64) * tokens + begin + i, mask=inside, other=255)
        p = tl.where(visible, tl.exp2(s - lse2[:, None]), 0.0)
        p_image = tl.where(source[None, :] == IMAGE, p, 0.0)
        # A masked p of zero times a NaN would still be NaN, so values that no row sees are not read.
        seen = inside & (i <= tl.max(reach, 0))
        grown = ()
        image_grown = ()
        for at in tl.static_range(0, BLOCK_D, BLOCK_P):
            dim = at + d[None, :]
            v_tile = tl.load(v_at + i[:, None].to(tl.int64) * v_token + dim, mask=seen[:, None] & (dim < HEAD_DIM), other=0.0)
            if UPCAST:
                v_tile = v_tile.to(tl.float32)
            grown += (tl.dot(p.to(v_tile.dtype), v_tile, out[at // BLOCK_P], input_precision="tf32x3"),)
            image_grown += (tl.dot(p_image.to(v_tile.dtype), v_tile, image_out[at // BLOCK_P], input_precision="tf32x3"),)
        out = grown
        image_out = image_grown
    square = tl.zeros([BLOCK_R], tl.float32)
    image_square = tl.zeros([BLOCK_R], tl.float32)
    for at in tl.static_range(0, BLOCK_D, BLOCK_P):
        square += tl.sum(out[at // BLOCK_P] * out[at // BLOCK_P], 1)
        image_square += tl.sum(image_out[at // BLOCK_P] * image_out[at // BLOCK_P], 1)
    image_max = tl.load(reals + 5 * plane + to, mask=r < rows, other=0.0)
    share = tl.where(image_max == image_max, tl.sqrt(image_square / square), image_max)  # absent with no image entry
    tl.store(reals + 6 * plane + to, share, mask=r < rows)


@triton.jit
def _queries(
    q, r, q_row, rows, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_P: tl.constexpr, UPCAST: tl.constexpr
):  # fmt: skip
    """The rows' queries, `BLOCK_P` dimensions in each part."""
    query = ()
    for at in tl.static_range(0, BLOCK_D, BLOCK_P):
        d = at + tl.arange(0, BLOCK_P)[None, :]
        part = tl.load(q + r[:, None] * q_row + d, mask=(r[:, None] < rows) & (d < HEAD_DIM), other=0.0)
        if UPCAST:
            part = part.to(tl.float32)
        query += (part,)
    return query


@triton.jit
def _products(query, k, i, k_token, inside, HEAD_DIM: tl.constexpr, BLOCK_P: tl.constexpr, UPCAST: tl.constexpr):
    """Each row's product with each of the tile's keys."""
    s = tl.zeros([query[0].shape[0], i.shape[0]], tl.float32)
    for place in tl.static_range(len(query)):
        d = place * BLOCK_P + tl.arange(0, BLOCK_P)[:, None]
        k_tile = tl.load(k + i[None, :].to(tl.int64) * k_token + d, mask=inside[None, :] & (d < HEAD_DIM), other=0.0)
        if UPCAST:
            k_tile = k_tile.to(tl.float32)
        s = tl.dot(query[place], k_tile, s, input_precision="tf32x3")
    return s


def row_statistics_triton(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, segment: torch.Tensor, limit: torch.Tensor, first: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `row_statistics`; returns what `window/fields.py` names."""
    batch, num_heads, rows, head_dim = q.shape
    reals, indices, mass = empty_fields(q)
    if mass.numel() == 0:
        return reals, indices, mass
    tiles = Tiles.of(q.dtype, head_dim)
    grid = (batch * num_heads, triton.cdiv(rows, BLOCK_ROWS))
    sizes = (num_heads, rows, k.shape[2], batch * rows * num_heads, scale * LOG2_E)
    constants = {
        "GROUP": num_heads // k.shape[1], "HEAD_DIM": head_dim, "BLOCK_D": tiles.block_d, "BLOCK_P": min(tiles.block_d, PART),
        "BLOCK_R": BLOCK_ROWS, "BLOCK_N": BLOCK_KEYS, "IMAGE": int(Segment.IMAGE), "UPCAST": interpreted(), "STAGES": tiles.stages,
        # In fp32 the query alone fills most registers of four warps.
        "num_warps": 8 if q.dtype == torch.float32 else 4,
        "maxnreg": 255,  # told nothing, ptxas prefers spilling one value to passing 128
    }  # fmt: skip
    row_statistics_kernel[grid](
        q, k, segment, first, limit, reals, indices, mass, *sizes, *q.stride()[:3], *k.stride()[:3],
        NEAR=float(WINDOW), SEGMENTS=NUM_SEGMENTS, **constants,
    )  # fmt: skip
    image_share_kernel[grid](
        q, k, v, segment, first, limit, reals, *sizes, *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], **constants,
    )  # fmt: skip
    return reals, indices, mass
