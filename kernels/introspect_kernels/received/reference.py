"""The public reference: one row at a time, in the definition's own words; fp64 if q is fp64, else fp32."""

from __future__ import annotations

import torch

from introspect_kernels.arena import Arena


def received_reference(
    q: torch.Tensor, arena: Arena, limit: torch.Tensor, heads: torch.Tensor, lse: torch.Tensor | None, scale: float, most: int
) -> torch.Tensor:
    """See `received_attention`."""
    batch, num_heads, span, _ = q.shape
    group = num_heads // arena.num_kv_heads
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    out = torch.zeros(batch, len(heads), most, dtype=dtype, device=q.device)
    for b in range(batch):
        for column, head in enumerate(heads.tolist()):
            start, length = int(arena.start[b, head // group]), int(arena.length[b, head // group])
            keys, position = arena.k[start : start + length].to(dtype), arena.position[start : start + length]
            for row in range(span):
                visible = (position <= limit[b, row]).nonzero()[:, 0]
                if not len(visible):
                    continue
                scores = keys[visible] @ q[b, head, row].to(dtype) * scale
                p = torch.exp(scores - (torch.logsumexp(scores, 0) if lse is None else lse[b, head, row].to(dtype)))
                others = position[visible] != limit[b, row]
                out[b, column, visible[others]] += p[others]
    return out
