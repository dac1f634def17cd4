"""Received attention in plain torch: what every retained entry got from one step's queries."""

from __future__ import annotations

import torch

from introspect_kernels.arena import Arena


def add_received(q: torch.Tensor, arena: Arena, position: torch.Tensor, scale: float, lse: torch.Tensor) -> None:
    """Add sum over the query group of p to `arena.received`, and one query to `arena.queries`, self apart.

    Reads K again, which a kernel that kept its scores need not.

    Args:
        q: `[batch, num_heads, head_dim]`.
        arena: with `received` and `queries`, updated in place.
        position: `int [batch]`, each query's token index.
        scale: factor on the scores.
        lse: `[batch, num_heads]` of this step, nats.
    """
    if arena.received is None or arena.queries is None:
        return
    k, _, where, _, valid = arena.gather()
    batch, _, head_dim = q.shape
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    grouped = (q.to(dtype) * scale).view(batch, arena.num_kv_heads, -1, head_dim)
    scores = grouped @ k.to(dtype).transpose(-1, -2)
    p = torch.exp(scores - lse.to(dtype).view(batch, arena.num_kv_heads, -1, 1)).sum(2)
    slots = arena.start[..., None] + torch.arange(k.shape[2], dtype=torch.int32, device=q.device)
    others = valid & (where != position.to(where.dtype)[:, None, None])
    index = slots[others].long()
    arena.received[index] += p[others].to(arena.received.dtype)
    arena.queries[index] += 1
