"""The public references: one row at a time, in the definitions' own words; fp64 if q is fp64, else fp32."""

from __future__ import annotations

from typing import cast

import torch

from introspect_kernels.arena import Arena
from introspect_kernels.decode.api import decode_attention
from introspect_kernels.statistics import HeadStats
from introspect_kernels.window.fields import INDICES, REALS, empty_fields


def window_scores_reference(
    q: torch.Tensor,
    k: torch.Tensor,
    limit: torch.Tensor,
    first: torch.Tensor,
    lse: torch.Tensor | None,
    scale: float,
    reduce: str,
) -> torch.Tensor:
    """See `window_scores`."""
    batch, heads, rows, _ = q.shape
    kv_heads, group = k.shape[1], heads // k.shape[1]
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    each = torch.zeros(batch, heads, k.shape[2], dtype=dtype, device=q.device)
    for b in range(batch):
        for row in range(rows):
            begin, count = int(first[b]), int(limit[b, row]) + 1
            for h in range(heads if count > 0 else 0):
                scores = k[b, h // group, begin : begin + count].to(dtype) @ q[b, h, row].to(dtype) * scale
                norm = torch.logsumexp(scores, 0) if lse is None else lse[b, h, row].to(dtype)
                each[b, h, begin : begin + count] += torch.exp(scores - norm)
    grouped = each.view(batch, kv_heads, group, -1)
    return {"mean": grouped.mean(2), "sum": grouped.sum(2), "max": grouped.amax(2)}[reduce]


def row_statistics_reference(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, segment: torch.Tensor, limit: torch.Tensor, first: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `row_statistics`: each row is a decode step over the keys up to its own."""
    batch, _, rows, _ = q.shape
    reals, indices, mass = empty_fields(q, torch.float64 if q.dtype == torch.float64 else torch.float32)
    for b in range(batch):
        for row in range(rows):
            begin, count = int(first[b]), int(limit[b, row]) + 1
            seen = slice(begin, begin + count)
            arena = Arena.dense(k[b : b + 1, :, seen], v[b : b + 1, :, seen], segment[b : b + 1, seen])
            stats = cast(HeadStats, decode_attention(q[b : b + 1, :, row], arena, limit[b : b + 1, row], scale, impl="reference")[1])
            for index, name in enumerate(REALS):
                reals[index, b, row] = getattr(stats, name)[0]
            for index, name in enumerate(INDICES):
                indices[index, b, row] = getattr(stats, name)[0]
            mass[b, row] = stats.mass[0]
    return reals, indices, mass
