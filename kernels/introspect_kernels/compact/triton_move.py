"""Moving entries in Triton: one program copies some rows of keys and values with what lies beside them."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from introspect_kernels.arena import Arena

BLOCK_T = 32
WARPS = 4


@triton.jit
def compact_kernel(
    k, v, segment, index, count, first, rows, start, arena_k, arena_v, arena_position, arena_segment, arena_received, arena_queries, length,
    num_kv_heads, most, tokens, k_batch, k_head, k_token, v_batch, v_head, v_token,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr, RECEIVED: tl.constexpr,
):  # fmt: skip
    """Copies `BLOCK_T` kept entries of one run from the prefill cache to the arena."""
    b, head = tl.program_id(0) // num_kv_heads, tl.program_id(0) % num_kv_heads
    kept = tl.load(count + tl.program_id(0))
    run = tl.load(rows + b) * num_kv_heads + head
    t = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    d = tl.arange(0, BLOCK_D)
    token = tl.load(index + tl.program_id(0).to(tl.int64) * most + t, mask=t < kept, other=0)
    slot = (tl.load(start + run) + t).to(tl.int64)
    inside = (t < kept)[:, None] & (d < HEAD_DIM)[None, :]
    to = slot[:, None] * HEAD_DIM + d[None, :]
    k_at = k + b.to(tl.int64) * k_batch + head.to(tl.int64) * k_head + token[:, None].to(tl.int64) * k_token + d[None, :]
    v_at = v + b.to(tl.int64) * v_batch + head.to(tl.int64) * v_head + token[:, None].to(tl.int64) * v_token + d[None, :]
    tl.store(arena_k + to, tl.load(k_at, mask=inside), mask=inside)
    tl.store(arena_v + to, tl.load(v_at, mask=inside), mask=inside)
    tl.store(arena_position + slot, token - tl.load(first + b), mask=t < kept)
    tl.store(arena_segment + slot, tl.load(segment + b.to(tl.int64) * tokens + token, mask=t < kept), mask=t < kept)
    if RECEIVED:
        tl.store(arena_received + slot, tl.zeros([BLOCK_T], tl.float32), mask=t < kept)
        tl.store(arena_queries + slot, tl.zeros([BLOCK_T], tl.int32), mask=t < kept)
    if tl.program_id(1) == 0:
        tl.store(length + run, kept)


@triton.jit
def rebudget_kernel(
    index, count, start, length, arena_k, arena_v, arena_position, arena_segment, arena_received, arena_queries, most,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr, RECEIVED: tl.constexpr,
):  # fmt: skip
    """Moves the kept entries of one run to its front, in order.

    An entry only ever moves towards the front, so a block may overwrite
    what it has read but nothing that a later block reads.
    """
    run = tl.program_id(0)
    kept = tl.load(count + run)
    begin = tl.load(start + run).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    for j in range(0, kept, BLOCK_T):
        t = j + tl.arange(0, BLOCK_T)
        used = t < kept
        source = begin + tl.load(index + run.to(tl.int64) * most + t, mask=used, other=0)
        inside = used[:, None] & (d < HEAD_DIM)[None, :]
        read = source[:, None] * HEAD_DIM + d[None, :]
        k_tile, v_tile = tl.load(arena_k + read, mask=inside), tl.load(arena_v + read, mask=inside)
        position, segment = tl.load(arena_position + source, mask=used), tl.load(arena_segment + source, mask=used)
        if RECEIVED:
            received, queries = tl.load(arena_received + source, mask=used), tl.load(arena_queries + source, mask=used)
        tl.debug_barrier()  # every thread has read before any of them writes
        target = begin + t
        write = target[:, None] * HEAD_DIM + d[None, :]
        tl.store(arena_k + write, k_tile, mask=inside)
        tl.store(arena_v + write, v_tile, mask=inside)
        tl.store(arena_position + target, position, mask=used)
        tl.store(arena_segment + target, segment, mask=used)
        if RECEIVED:
            tl.store(arena_received + target, received, mask=used)
            tl.store(arena_queries + target, queries, mask=used)
        tl.debug_barrier()  # and has written before any of them reads the next block
    if kept >= 0:
        tl.store(length + run, kept)


def compact_triton(
    arena: Arena,
    k: torch.Tensor,
    v: torch.Tensor,
    index: torch.Tensor,
    count: torch.Tensor,
    segment: torch.Tensor,
    first: torch.Tensor,
    rows: torch.Tensor,
) -> None:
    """See `compact_into`."""
    batch, kv_heads, most = index.shape
    head_dim = k.shape[3]
    received, queries = _accumulators(arena)
    compact_kernel[(batch * kv_heads, max(1, triton.cdiv(most, BLOCK_T)))](
        k, v, segment, index, count, first, rows, arena.start, arena.k, arena.v, arena.position, arena.segment, received, queries,
        arena.length, kv_heads, most, k.shape[2], *k.stride()[:3], *v.stride()[:3],
        HEAD_DIM=head_dim, BLOCK_D=triton.next_power_of_2(head_dim), BLOCK_T=BLOCK_T, RECEIVED=arena.received is not None, num_warps=WARPS,
    )  # fmt: skip


def rebudget_triton(arena: Arena, index: torch.Tensor, count: torch.Tensor) -> None:
    """See `rebudget`."""
    head_dim = arena.k.shape[1]
    received, queries = _accumulators(arena)
    rebudget_kernel[(count.numel(),)](
        index, count, arena.start, arena.length, arena.k, arena.v, arena.position, arena.segment, received, queries, index.shape[2],
        HEAD_DIM=head_dim, BLOCK_D=triton.next_power_of_2(head_dim), BLOCK_T=BLOCK_T, RECEIVED=arena.received is not None, num_warps=WARPS,
    )  # fmt: skip


def _accumulators(arena: Arena) -> tuple[torch.Tensor, torch.Tensor]:
    """Pointers for the kernels; without accumulators some tensor that they do not touch."""
    if arena.received is None or arena.queries is None:
        return arena.position, arena.position
    return arena.received, arena.queries
