"""Window scores in Triton: the rows' log-sum-exp, unless given, then the sum of each column."""

from __future__ import annotations

import torch

from introspect_kernels.window.triton_columns import Keys, column_sums, row_lse


def window_scores_triton(
    q: torch.Tensor,
    k: torch.Tensor,
    limit: torch.Tensor,
    first: torch.Tensor,
    lse: torch.Tensor | None,
    scale: float,
    reduce: str,
) -> torch.Tensor:
    """See `window_scores`."""
    batch, kv_heads, tokens, _ = k.shape
    begin = first[:, None].expand(-1, kv_heads).contiguous()
    keys = Keys(k, (k.stride(0), k.stride(1), k.stride(2)), begin, tokens - begin, None)
    lse = row_lse(q, keys, limit, scale, tokens) if lse is None else lse.float().contiguous()
    heads = torch.arange(q.shape[1], dtype=torch.int32, device=q.device).view(kv_heads, -1)
    out = torch.zeros(batch, kv_heads, tokens, device=q.device)
    column_sums(q, keys, limit, lse, scale, heads, out, reduce=reduce, skip_self=False)
    return out
