"""The operators as torch knows them: opaque to `torch.compile`, whichever implementation runs. Both write into the arena."""

from __future__ import annotations

from collections.abc import Callable

import torch

from introspect_kernels.arena import Arena
from introspect_kernels.compact.reference import compact_reference, rebudget_reference
from introspect_kernels.compact.vectorised import compact_vectorised, rebudget_vectorised

Tensor = torch.Tensor
Compact = Callable[[Arena, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], None]
Rebudget = Callable[[Arena, Tensor, Tensor], None]

IMPLEMENTATIONS = ("vectorised", "reference", "triton")
WRITTEN = ("arena_k", "arena_v", "arena_position", "arena_segment", "length", "received", "queries")


def _compact_by(impl: str) -> Compact:
    if impl == "triton":
        from introspect_kernels.compact.triton_move import compact_triton

        return compact_triton
    return compact_vectorised if impl == "vectorised" else compact_reference


def _rebudget_by(impl: str) -> Rebudget:
    if impl == "triton":
        from introspect_kernels.compact.triton_move import rebudget_triton

        return rebudget_triton
    return rebudget_vectorised if impl == "vectorised" else rebudget_reference


@torch.library.custom_op("introspect::compact", mutates_args=WRITTEN)
def compact_op(
    arena_k: torch.Tensor,
    arena_v: torch.Tensor,
    arena_position: torch.Tensor,
    arena_segment: torch.Tensor,
    start: torch.Tensor,
    length: torch.Tensor,
    capacity: torch.Tensor,
    received: torch.Tensor | None,
    queries: torch.Tensor | None,
    k: torch.Tensor,
    v: torch.Tensor,
    index: torch.Tensor,
    count: torch.Tensor,
    segment: torch.Tensor,
    first: torch.Tensor,
    rows: torch.Tensor,
    impl: str,
) -> None:
    """Entries of a prefill cache into an arena's runs."""
    arena = Arena(arena_k, arena_v, arena_position, arena_segment, start, length, capacity, received, queries)
    _compact_by(impl)(arena, k, v, index, count, segment, first, rows)


@torch.library.custom_op("introspect::rebudget", mutates_args=WRITTEN)
def rebudget_op(
    arena_k: torch.Tensor,
    arena_v: torch.Tensor,
    arena_position: torch.Tensor,
    arena_segment: torch.Tensor,
    start: torch.Tensor,
    length: torch.Tensor,
    capacity: torch.Tensor,
    received: torch.Tensor | None,
    queries: torch.Tensor | None,
    index: torch.Tensor,
    count: torch.Tensor,
    impl: str,
) -> None:
    """Kept entries of each run to its front."""
    arena = Arena(arena_k, arena_v, arena_position, arena_segment, start, length, capacity, received, queries)
    _rebudget_by(impl)(arena, index, count)


# In place and without a result: there is nothing for a fake to make up.
compact_op.register_fake(lambda *_args: None)
rebudget_op.register_fake(lambda *_args: None)


def state(arena: Arena) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """An arena's tensors in the operators' order."""
    return (
        arena.k,
        arena.v,
        arena.position,
        arena.segment,
        arena.start,
        arena.length,
        arena.capacity,
        arena.received,
        arena.queries,
    )
