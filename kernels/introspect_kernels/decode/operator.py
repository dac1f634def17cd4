"""`decode_attention` as one opaque torch operator, so that `torch.compile(fullgraph=True)` takes it as it is.

Eager callers do not pass through here: dispatch would cost more than a small step.
"""

from __future__ import annotations

import torch

from introspect_kernels.arena import Arena
from introspect_kernels.decode.dispatch import run
from introspect_kernels.decode.packing import INDICES, REALS, PackedStats, pack
from introspect_kernels.segments import NUM_SEGMENTS

Outputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


@torch.library.custom_op("introspect_kernels::decode_attention", mutates_args=("received", "queries"))
def decode_attention_operator(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    position: torch.Tensor,
    segment: torch.Tensor,
    start: torch.Tensor,
    length: torch.Tensor,
    capacity: torch.Tensor,
    received: torch.Tensor | None,
    queries: torch.Tensor | None,
    query_position: torch.Tensor,
    scale: float,
    stats: bool,
    impl: str | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `decode_attention`: the output and `PackedStats`, whose tensors have no elements without `stats`."""
    arena = Arena(k, v, position, segment, start, length, capacity, received, queries)
    out, measured = run(q, arena, query_position, scale, stats, impl)
    if measured is None:
        return out, *_shapes(q, start, stats=False)
    return out, *(measured if isinstance(measured, PackedStats) else pack(measured))


@decode_attention_operator.register_fake
def _fake(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    position: torch.Tensor,
    segment: torch.Tensor,
    start: torch.Tensor,
    length: torch.Tensor,
    capacity: torch.Tensor,
    received: torch.Tensor | None,
    queries: torch.Tensor | None,
    query_position: torch.Tensor,
    scale: float,
    stats: bool,
    impl: str | None,
) -> Outputs:
    del k, v, position, segment, length, capacity, received, queries, query_position, scale, impl
    return q.new_empty(q.shape), *_shapes(q, start, stats=stats)


def _shapes(q: torch.Tensor, start: torch.Tensor, *, stats: bool) -> PackedStats:
    """Tensors of the shapes that the statistics have, or have without any."""
    batch, heads = q.shape[:2]
    kinds = NUM_SEGMENTS if stats else 0
    return PackedStats(
        q.new_empty(len(REALS) if stats else 0, batch, heads, dtype=torch.float32),
        q.new_empty(batch, heads, kinds, dtype=torch.float32),
        q.new_empty(len(INDICES) if stats else 0, batch, heads, dtype=torch.int32),
        q.new_empty(*start.shape, kinds, dtype=torch.int32),
    )
