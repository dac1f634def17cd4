"""Column sums of attention in Triton: what a set of query rows gives every key.

Pass 1 finds the log-sum-exp of each row, in chunks of keys; pass 2 takes one
block of keys a program and loops over the rows, so that each column has one
writer: no atomics, the same bits every time, no matrix beyond a tile. Blocks
are counted from a run's own first entry and their shapes do not depend on the
other sequences, so neither do the bits.

Scores are kept in units of log2, since `exp2` is what the hardware has.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from introspect_kernels.errors import KernelInputError
from introspect_kernels.implementations import interpreted

CHUNK = 1024
"""Keys of one pass-1 program: enough programs for a GPU at one sequence, few partial results."""
LOG2_E = 1.4426950408889634
REDUCTIONS = {"mean": 0, "sum": 1, "max": 2}


@triton.jit
def partial_lse_kernel(
    q, k, first, count, position, limit, partial,
    num_heads, rows, chunks, scale,
    q_batch, q_head, q_row, k_batch, k_head, k_token,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr,
    CHUNK_N: tl.constexpr, DENSE: tl.constexpr, UPCAST: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """`partial [batch * num_heads, chunks, rows]`: log2-sum-exp2 of each row over one chunk of its visible keys."""
    b, h = tl.program_id(0) // num_heads, tl.program_id(0) % num_heads
    chunk = tl.program_id(1)
    run = b * (num_heads // GROUP) + h // GROUP
    begin, n = tl.load(first + run), tl.load(count + run)
    r = tl.program_id(2) * BLOCK_R + tl.arange(0, BLOCK_R)
    d = tl.arange(0, BLOCK_D)
    reach = tl.load(limit + b * rows + r, mask=r < rows, other=-1)
    q_at = q + b.to(tl.int64) * q_batch + h * q_head + r[:, None] * q_row + d[None, :]
    q_tile = tl.load(q_at, mask=(r[:, None] < rows) & (d[None, :] < HEAD_DIM), other=0.0)
    if UPCAST:
        q_tile = q_tile.to(tl.float32)
    k_at = k + b.to(tl.int64) * k_batch + (h // GROUP).to(tl.int64) * k_head + begin.to(tl.int64) * k_token
    m = tl.full([BLOCK_R], -1e30, tl.float32)  # finite: -inf - -inf would be NaN
    total = tl.zeros([BLOCK_R], tl.float32)
    for j in tl.range(chunk * CHUNK_N, tl.minimum((chunk + 1) * CHUNK_N, n), BLOCK_N, num_stages=STAGES):
        i = j + tl.arange(0, BLOCK_N)
        k_tile = tl.load(k_at + i[None, :].to(tl.int64) * k_token + d[:, None], mask=(i[None, :] < n) & (d[:, None] < HEAD_DIM), other=0.0)
        if UPCAST:
            k_tile = k_tile.to(tl.float32)
        where = i
        if not DENSE:
            where = tl.load(position + begin + i, mask=i < n, other=-1)
        visible = (i[None, :] < n) & (where[None, :] <= reach[:, None])
        s = tl.where(visible, tl.dot(q_tile, k_tile, input_precision="tf32x3") * scale, -1e30)
        top = tl.maximum(m, tl.max(s, 1))
        total = total * tl.exp2(m - top) + tl.sum(tl.exp2(s - top[:, None]), 1)
        m = top
    out = (tl.program_id(0) * chunks + chunk) * rows + r
    # The log of nothing is -inf; a row that sees no key here gets about -1e30, which weighs as little.
    tl.store(partial + out, m + tl.log2(total), mask=r < rows)


@triton.jit
def merge_lse_kernel(partial, lse, rows, chunks, BLOCK_R: tl.constexpr):
    """`lse [batch * num_heads, rows]`, natural, from the chunks in their order."""
    r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    m = tl.full([BLOCK_R], -1e30, tl.float32)
    total = tl.zeros([BLOCK_R], tl.float32)
    for chunk in range(chunks):
        x = tl.load(partial + (tl.program_id(0) * chunks + chunk) * rows + r, mask=r < rows, other=float("-inf"))
        top = tl.maximum(m, x)
        total = total * tl.exp2(m - top) + tl.exp2(x - top)
        m = top
    tl.store(lse + tl.program_id(0) * rows + r, (m + tl.log2(total)) * 0.6931471805599453, mask=r < rows)


@triton.jit
def column_sums_kernel(
    q, k, first, count, position, limit, lse, heads, out,
    num_heads, num_out, rows, longest, scale,
    q_batch, q_head, q_row, k_batch, k_head, k_token,
    GROUP: tl.constexpr, MEMBERS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr, DENSE: tl.constexpr, SKIP_SELF: tl.constexpr, REDUCE: tl.constexpr, UPCAST: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """`out [batch, num_out, longest]`: each key's sum of exp(score - lse) over rows, reduced over an output head's members."""
    b, o = tl.program_id(0) // num_out, tl.program_id(0) % num_out
    kv = tl.load(heads + o * MEMBERS) // GROUP
    run = b * (num_heads // GROUP) + kv
    begin, n = tl.load(first + run), tl.load(count + run)
    i = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    k_at = k + b.to(tl.int64) * k_batch + kv.to(tl.int64) * k_head + (begin + i[None, :]).to(tl.int64) * k_token
    k_tile = tl.load(k_at + d[:, None], mask=(i[None, :] < n) & (d[:, None] < HEAD_DIM), other=0.0)
    if UPCAST:
        k_tile = k_tile.to(tl.float32)
    where = i
    if not DENSE:
        where = tl.load(position + begin + i, mask=i < n, other=-1)
    result = tl.zeros([BLOCK_N], tl.float32)
    for member in range(MEMBERS):
        h = tl.load(heads + o * MEMBERS + member)
        column = tl.zeros([BLOCK_N], tl.float32)
        for j in tl.range(0, rows, BLOCK_R, num_stages=STAGES):
            r = j + tl.arange(0, BLOCK_R)
            q_at = q + b.to(tl.int64) * q_batch + h * q_head + r[:, None] * q_row + d[None, :]
            q_tile = tl.load(q_at, mask=(r[:, None] < rows) & (d[None, :] < HEAD_DIM), other=0.0)
            if UPCAST:
                q_tile = q_tile.to(tl.float32)
            reach = tl.load(limit + b * rows + r, mask=r < rows, other=-1)
            norm = tl.load(lse + (b * num_heads + h) * rows + r, mask=r < rows, other=0.0) * 1.4426950408889634
            s = tl.dot(q_tile, k_tile, input_precision="tf32x3") * scale
            visible = where[None, :] <= reach[:, None]  # what lies past the run's end is not stored
            if SKIP_SELF:
                visible = visible & (where[None, :] != reach[:, None])
            column += tl.sum(tl.where(visible, tl.exp2(s - norm[:, None]), 0.0), 0)
        if REDUCE == 2:
            result = tl.maximum(result, column)
        else:
            result += column
    if REDUCE == 0:
        result = result / MEMBERS
    column_of = i + begin if DENSE else i
    tl.store(out + (b * num_out + o).to(tl.int64) * longest + column_of, result, mask=i < n)


@dataclass(frozen=True)
class Tiles:
    """Block sizes for one dtype and head size.

    Attributes:
        block_d: head size up to the next power of two, at least 16.
        block_r: query rows of a tile. 16 for fp32: with 32 rows of 32 keys Triton lays all warps along the rows, where
            half of them repeat the others' work and registers spill.
        block_n: keys of a tile. Half as many for fp32 or heads over 128, which take twice the shared memory.
        stages: tiles in flight. Two where a tile is large.
        warps: of a program.
    """

    block_d: int
    block_r: int
    block_n: int
    stages: int
    warps: int

    @classmethod
    def of(cls, dtype: torch.dtype, head_dim: int) -> Tiles:
        """The choice; nothing is tuned at run time.

        Raises:
            KernelInputError: the kernels are not built for that dtype or head size.
        """
        if dtype not in (torch.bfloat16, torch.float16, torch.float32) or head_dim > 256:
            raise KernelInputError(f"impl 'triton' takes bf16, fp16 or fp32 and heads of up to 256, got {dtype} and {head_dim}")
        block_d = max(16, triton.next_power_of_2(head_dim))
        large = dtype == torch.float32 or block_d > 128
        return cls(block_d, 16 if dtype == torch.float32 else 32, 32 if large else 64, 2 if large else 3, 4)


@dataclass(frozen=True)
class Keys:
    """Runs of keys as the kernels read them: a dense cache (rows of one stride) or an arena's slots.

    Attributes:
        k: the storage.
        strides: of batch, KV head and token in elements.
        first: `int32 [batch, num_kv_heads]`, each run's first token or slot.
        count: `int32 [batch, num_kv_heads]`, entries of each run.
        position: `int32 [slots]`, or None in a dense cache, where the i-th entry of a run has token index i.
    """

    k: torch.Tensor
    strides: tuple[int, int, int]
    first: torch.Tensor
    count: torch.Tensor
    position: torch.Tensor | None


def row_lse(q: torch.Tensor, keys: Keys, limit: torch.Tensor, scale: float, longest: int) -> torch.Tensor:
    """Log-sum-exp `float32 [batch, num_heads, rows]`, nats, of each row over the keys up to its limit.

    Args:
        q: `[batch, num_heads, rows, head_dim]`.
        keys: what is attended to.
        limit: `int32 [batch, rows]`, the last visible token index; -1 for no row.
        scale: factor on the scores.
        longest: entries of the longest run.
    """
    batch, num_heads, rows, head_dim = q.shape
    tiles = Tiles.of(q.dtype, head_dim)
    chunks = max(1, triton.cdiv(longest, CHUNK))
    partial = torch.empty(batch * num_heads, chunks, rows, device=q.device)
    lse = torch.empty(batch, num_heads, rows, device=q.device)
    if lse.numel() == 0:
        return lse
    partial_lse_kernel[(batch * num_heads, chunks, triton.cdiv(rows, tiles.block_r))](
        q, keys.k, keys.first, keys.count, keys.first if keys.position is None else keys.position, limit, partial,
        num_heads, rows, chunks, scale * LOG2_E, *q.stride()[:3], *keys.strides,
        GROUP=num_heads // keys.first.shape[1], HEAD_DIM=head_dim, BLOCK_D=tiles.block_d, BLOCK_R=tiles.block_r,
        BLOCK_N=tiles.block_n, CHUNK_N=CHUNK, DENSE=keys.position is None, UPCAST=interpreted(), STAGES=tiles.stages, num_warps=tiles.warps,
    )  # fmt: skip
    merge_lse_kernel[(batch * num_heads, triton.cdiv(rows, 128))](partial, lse, rows, chunks, BLOCK_R=128)
    return lse


def column_sums(
    q: torch.Tensor,
    keys: Keys,
    limit: torch.Tensor,
    lse: torch.Tensor,
    scale: float,
    heads: torch.Tensor,
    out: torch.Tensor,
    *,
    reduce: str,
    skip_self: bool,
) -> None:
    """Write into `out` what the rows give every key.

    Args:
        q: `[batch, num_heads, rows, head_dim]`.
        keys: what is attended to.
        limit: as in `row_lse`.
        lse: `float32 [batch, num_heads, rows]`.
        scale: factor on the scores.
        heads: `int32 [num_out, members]`, the query heads of each output head, all of one KV head.
        out: `float32 [batch, num_out, longest]`; columns of no entry are left as they are.
        reduce: over the members: `"mean"`, `"sum"` or `"max"`.
        skip_self: leave out the entry whose token index is the row's own.
    """
    batch, num_heads, rows, head_dim = q.shape
    num_out, members = heads.shape
    longest = out.shape[2]
    if out.numel() == 0:
        return
    tiles = Tiles.of(q.dtype, head_dim)
    column_sums_kernel[(batch * num_out, triton.cdiv(longest, tiles.block_n))](
        q, keys.k, keys.first, keys.count, keys.first if keys.position is None else keys.position, limit, lse, heads, out,
        num_heads, num_out, rows, longest, scale * LOG2_E, *q.stride()[:3], *keys.strides,
        GROUP=num_heads // keys.first.shape[1], MEMBERS=members, HEAD_DIM=head_dim, BLOCK_D=tiles.block_d, BLOCK_R=tiles.block_r,
        BLOCK_N=tiles.block_n, DENSE=keys.position is None, SKIP_SELF=skip_self, REDUCE=REDUCTIONS[reduce], UPCAST=interpreted(),
        STAGES=tiles.stages, num_warps=tiles.warps,
    )  # fmt: skip
