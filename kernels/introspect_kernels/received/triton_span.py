"""Received attention in Triton: the kernels of the window scores over an arena's runs, self left out, one column of heads each."""

from __future__ import annotations

import torch

from introspect_kernels.arena import Arena
from introspect_kernels.window.triton_columns import Keys, column_sums, row_lse


def received_triton(
    q: torch.Tensor, arena: Arena, limit: torch.Tensor, heads: torch.Tensor, lse: torch.Tensor | None, scale: float, most: int
) -> torch.Tensor:
    """See `received_attention`."""
    keys = Keys(arena.k, (0, 0, arena.k.stride(0)), arena.start.contiguous(), arena.length.contiguous(), arena.position)
    lse = row_lse(q, keys, limit, scale, most) if lse is None else lse.float().contiguous()
    out = torch.zeros(q.shape[0], len(heads), most, device=q.device)
    column_sums(q, keys, limit, lse, scale, heads[:, None].contiguous(), out, reduce="sum", skip_self=True)
    return out
