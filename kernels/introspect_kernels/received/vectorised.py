"""The path that runs without a GPU: one run at a time, all chosen heads that read it together, fp32."""

from __future__ import annotations

import torch

from introspect_kernels.arena import Arena
from introspect_kernels.window.columns import run_columns


def received_vectorised(
    q: torch.Tensor, arena: Arena, limit: torch.Tensor, heads: torch.Tensor, lse: torch.Tensor | None, scale: float, most: int
) -> torch.Tensor:
    """See `received_attention`."""
    batch, num_heads = q.shape[:2]
    group = num_heads // arena.num_kv_heads
    out = torch.zeros(batch, len(heads), most, device=q.device)
    for b in range(batch):
        for kv_head in (heads // group).unique().tolist():
            columns = (heads // group == kv_head).nonzero()[:, 0]
            chosen = heads[columns].long()
            start, length = int(arena.start[b, kv_head]), int(arena.length[b, kv_head])
            run = slice(start, start + length)
            position = arena.position[run]
            rows = (limit[b] >= position[0]).nonzero()[:, 0] if length else limit.new_empty(0)
            if not len(rows):
                continue
            norm = None if lse is None else lse[b, chosen][:, rows]
            queries = q[b, chosen][:, rows]
            out[b, columns, :length] = run_columns(queries, arena.k[run], position, limit[b, rows], norm, scale, skip_self=True)
    return out
