"""`received_attention`: validate, then dispatch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from introspect_kernels.arena import Arena
from introspect_kernels.arena_form import check_arena, check_runs, is_integer
from introspect_kernels.errors import KernelInputError
from introspect_kernels.implementations import choose, values_can_be_read
from introspect_kernels.received.operators import IMPLEMENTATIONS, received_op


class ReceivedAttention(NamedTuple):
    """What every retained entry got, per chosen head; entries in their run's order, padded to the longest run.

    Attributes:
        sums: `float32 [batch, chosen heads, entries]`, the sum of p over the span's queries, an entry's own query left out.
        queries: `int32`, same shape: the queries that sum is over, namely those after the entry.
        position: `int32`, same shape: the entry's token index, -1 where there is none.
    """

    sums: torch.Tensor
    queries: torch.Tensor
    position: torch.Tensor


def received_attention(
    q: torch.Tensor,
    arena: Arena,
    position: torch.Tensor,
    scale: float,
    *,
    heads: Sequence[int] | torch.Tensor | None = None,
    lse: torch.Tensor | None = None,
    most: int | None = None,
    impl: str | None = None,
) -> ReceivedAttention:
    """What the queries of a generated span gave every retained entry: the image overlay, Future Attention Influence.

    A query sees the entries up to its own token index. The sum is over the span's rows; heads are not reduced. An entry's own
    query is left out of the sum, not out of the softmax. Divide by `queries` for a mean. Under eviction this is a lower bound:
    an entry that was dropped has no column, and without `lse` the probabilities are over what is retained now.

    Args:
        q: `[batch, num_heads, span, head_dim]`, the span's stored queries.
        arena: the entries; a prefill cache through `Arena.dense`. Its positions ascend in each run.
        position: `int [batch, span]`, token index of each query, -1 where there is none.
        scale: factor on the scores before the softmax.
        heads: query heads to report, in that order; all without.
        lse: `float [batch, num_heads, span]`, each query's log-sum-exp as its step saw it (`HeadStats.lse`), nats; found here without.
        most: entries of the longest run, if known; else read from the arena, which a compiled graph cannot do.
        impl: `"triton"` (the default on CUDA), `"vectorised"` (the default elsewhere) or `"reference"`. A named one is used or
            refused, never replaced.

    Raises:
        KernelInputError: shapes, dtypes, devices or indices do not fit.
        UnknownImplementationError: there is no such `impl`, or it cannot run here.
    """
    chosen = _validate(q, arena, position, heads, lse)
    name = choose(impl, q, IMPLEMENTATIONS)
    if most is None:
        most = int(arena.length.max()) if arena.length.numel() else 0
    elif values_can_be_read(arena.length) and bool((arena.length > most).any()):
        raise KernelInputError(f"most must be at least the longest run, {int(arena.length.max())}, got {most}")
    limit = position.to(torch.int32)
    q = q if q.stride(-1) == 1 else q.contiguous()
    sums = received_op(q, arena.k, arena.position, arena.start, arena.length, limit, chosen, lse, scale, most, name)
    where = _positions(arena, chosen.long() // (q.shape[1] // arena.num_kv_heads), most)
    return ReceivedAttention(sums, _queries_after(where, limit), where)


def _positions(arena: Arena, kv_heads: torch.Tensor, most: int) -> torch.Tensor:
    index = torch.arange(most, device=arena.k.device)
    valid = index < arena.length[:, kv_heads, None]
    slots = torch.where(valid, arena.start[:, kv_heads, None] + index, 0)
    return torch.where(valid, arena.position[slots.long()], -1) if arena.position.numel() else torch.full_like(slots, -1).to(torch.int32)


def _queries_after(where: torch.Tensor, limit: torch.Tensor) -> torch.Tensor:
    """How many of the rows come after each entry, `int32` like `where`; none after what is no entry."""
    ordered = limit.sort(-1).values
    flat = where.flatten(1)
    after = limit.shape[1] - torch.searchsorted(ordered, flat, right=True)
    return torch.where(where >= 0, after.view_as(where), 0).to(torch.int32)


def _validate(
    q: torch.Tensor, arena: Arena, position: torch.Tensor, heads: Sequence[int] | torch.Tensor | None, lse: torch.Tensor | None
) -> torch.Tensor:
    """The chosen heads as int32."""
    check_arena(arena)
    batch, kv_heads = arena.start.shape
    head_dim = arena.k.shape[1]
    if q.dim() != 4 or q.shape[0] != batch or q.shape[3] != head_dim:
        raise KernelInputError(f"q must be [{batch}, num_heads, span, {head_dim}], got {tuple(q.shape)}")
    num_heads = q.shape[1]
    if not num_heads or not kv_heads or num_heads % kv_heads:
        raise KernelInputError(f"num_heads must be a multiple of num_kv_heads {kv_heads}, got {num_heads}")
    if q.dtype != arena.k.dtype or q.device != arena.k.device:
        raise KernelInputError(f"q must be {arena.k.dtype} on {arena.k.device} like the arena, got {q.dtype} on {q.device}")
    if position.shape != (batch, q.shape[2]) or not is_integer(position) or position.device != q.device:
        raise KernelInputError(
            f"position must be integers {(batch, q.shape[2])} on {q.device}, "
            f"got {position.dtype} {tuple(position.shape)} on {position.device}"
        )
    if lse is not None and (lse.shape != q.shape[:3] or lse.device != q.device or not lse.is_floating_point()):
        raise KernelInputError(f"lse must be floats {tuple(q.shape[:3])} on {q.device}, got {lse.dtype} {tuple(lse.shape)} on {lse.device}")
    chosen = torch.arange(num_heads) if heads is None else torch.as_tensor(heads)
    if chosen.dim() != 1 or not is_integer(chosen):
        raise KernelInputError(f"heads must be a list of query heads, got {chosen.dtype} {tuple(chosen.shape)}")
    if heads is not None and values_can_be_read(chosen) and bool(((chosen < 0) | (chosen >= num_heads)).any()):
        raise KernelInputError(f"heads must lie in 0 to {num_heads - 1}, got {chosen.tolist()}")
    check_runs(arena.start, arena.length, arena.k.shape[0])
    return chosen.to(device=q.device, dtype=torch.int32)
