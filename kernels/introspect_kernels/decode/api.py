"""`decode_attention`: validate, then dispatch."""

from __future__ import annotations

from collections.abc import Callable

import torch

from introspect_kernels.arena import Arena
from introspect_kernels.decode.reference import decode_attention_reference
from introspect_kernels.decode.vectorised import decode_attention_vectorised
from introspect_kernels.errors import KernelInputError, UnknownImplementationError
from introspect_kernels.statistics import HeadStats

Implementation = Callable[[torch.Tensor, Arena, torch.Tensor, float, bool], tuple[torch.Tensor, HeadStats | None]]

_IMPLEMENTATIONS: dict[str, Implementation] = {
    "vectorised": decode_attention_vectorised,
    "reference": decode_attention_reference,
}


def decode_attention(
    q: torch.Tensor, arena: Arena, position: torch.Tensor, scale: float, *, stats: bool = True, impl: str | None = None
) -> tuple[torch.Tensor, HeadStats | None]:
    """Attention of one query token per sequence over its retained entries, with head statistics.

    Args:
        q: `[batch, num_heads, head_dim]`; head h reads KV head `h // (num_heads / num_kv_heads)`.
        arena: the layer's entries, the query's own included.
        position: `int [batch]`, the query's token index, for distances and the self mass.
        scale: factor on the scores before the softmax.
        stats: whether to return statistics; without them `None` takes their place.
        impl: `"vectorised"` (the default) or `"reference"`. A named one is used or refused, never replaced.

    Returns:
        The output `[batch, num_heads, head_dim]` in q's dtype, and the statistics. A head without
        entries gives a zero output, `lse` of -inf and NaN elsewhere.

    Raises:
        KernelInputError: shapes, dtypes or devices do not fit.
        UnknownImplementationError: there is no such `impl`.
    """
    _validate(q, arena, position)
    name = impl or "vectorised"
    if name not in _IMPLEMENTATIONS:
        raise UnknownImplementationError(f"impl must be one of {sorted(_IMPLEMENTATIONS)}, got {name!r}")
    return _IMPLEMENTATIONS[name](q, arena, position, scale, stats)


def _validate(q: torch.Tensor, arena: Arena, position: torch.Tensor) -> None:
    batch, kv_heads = arena.start.shape
    if q.dim() != 3 or q.shape[0] != batch or q.shape[2] != arena.k.shape[1]:
        raise KernelInputError(f"q must be [{batch}, num_heads, {arena.k.shape[1]}], got {tuple(q.shape)}")
    if q.shape[1] % kv_heads:
        raise KernelInputError(f"num_heads must be a multiple of num_kv_heads {kv_heads}, got {q.shape[1]}")
    if position.shape != (batch,) or position.is_floating_point():
        raise KernelInputError(f"position must be integers [{batch}], got {position.dtype} {tuple(position.shape)}")
    if q.device != arena.k.device:
        raise KernelInputError(f"q is on {q.device}, the arena on {arena.k.device}")
