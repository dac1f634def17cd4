"""The paths that run without a GPU: all runs at once, by slot numbers."""

from __future__ import annotations

import torch

from introspect_kernels.arena import Arena


def compact_vectorised(
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
    b, head, entry = _kept(index, count)
    row = rows.long()[b]
    slot = arena.start[row, head].long() + entry
    token = index[b, head, entry].long()
    arena.k[slot] = k[b, head, token]
    arena.v[slot] = v[b, head, token]
    arena.position[slot] = (token - first[b]).to(torch.int32)
    arena.segment[slot] = segment[b, token]
    if arena.received is not None and arena.queries is not None:
        arena.received[slot], arena.queries[slot] = 0.0, 0
    arena.length[rows.long()] = count


def rebudget_vectorised(arena: Arena, index: torch.Tensor, count: torch.Tensor) -> None:
    """See `rebudget`. Indexing copies what it reads before anything is written, so runs may overlap with themselves."""
    b, head, entry = _kept(index, count)
    start = arena.start[b, head].long()
    target, source = start + entry, start + index[b, head, entry].long()
    for column in (arena.k, arena.v, arena.position, arena.segment, arena.received, arena.queries):
        if column is not None:
            column[target] = column[source]
    arena.length.copy_(torch.where(count >= 0, count, arena.length))


def _kept(index: torch.Tensor, count: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sequence, KV head and place in its run of every kept entry."""
    used = torch.arange(index.shape[2], device=index.device) < count[..., None]
    b, head, entry = used.nonzero(as_tuple=True)
    return b, head, entry
