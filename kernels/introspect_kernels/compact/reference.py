"""The public references: one run at a time."""

from __future__ import annotations

import torch

from introspect_kernels.arena import Arena


def compact_reference(
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
    for b, row in enumerate(rows.tolist()):
        for head in range(k.shape[1]):
            kept = index[b, head, : int(count[b, head])].long()
            arena.fill(row, head, k[b, head, kept], v[b, head, kept], kept - first[b], segment[b, kept])


def rebudget_reference(arena: Arena, index: torch.Tensor, count: torch.Tensor) -> None:
    """See `rebudget`."""
    columns = [c for c in (arena.k, arena.v, arena.position, arena.segment, arena.received, arena.queries) if c is not None]
    for b in range(count.shape[0]):
        for head in range(count.shape[1]):
            kept, start = int(count[b, head]), int(arena.start[b, head])
            if kept < 0:
                continue
            source = start + index[b, head, :kept].long()
            for column in columns:
                column[start : start + kept] = column[source].clone()
            arena.length[b, head] = kept
