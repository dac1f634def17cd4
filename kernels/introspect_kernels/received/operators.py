"""The operator as torch knows it: opaque to `torch.compile`, whichever implementation runs."""

from __future__ import annotations

from collections.abc import Callable

import torch

from introspect_kernels.arena import Arena
from introspect_kernels.received.reference import received_reference
from introspect_kernels.received.vectorised import received_vectorised

Received = Callable[[torch.Tensor, Arena, torch.Tensor, torch.Tensor, torch.Tensor | None, float, int], torch.Tensor]

IMPLEMENTATIONS = ("vectorised", "reference", "triton")


def _by(impl: str) -> Received:
    if impl == "triton":
        from introspect_kernels.received.triton_span import received_triton

        return received_triton
    return received_vectorised if impl == "vectorised" else received_reference


@torch.library.custom_op("introspect::received_attention", mutates_args=())
def received_op(
    q: torch.Tensor,
    k: torch.Tensor,
    position: torch.Tensor,
    start: torch.Tensor,
    length: torch.Tensor,
    limit: torch.Tensor,
    heads: torch.Tensor,
    lse: torch.Tensor | None,
    scale: float,
    most: int,
    impl: str,
) -> torch.Tensor:
    """Sums `[batch, chosen heads, most]`; only what the operator reads of an arena is handed over."""
    arena = Arena(k, k, position, torch.empty(0, dtype=torch.uint8), start, length, length)
    return _by(impl)(q, arena, limit, heads, lse, scale, most)


@received_op.register_fake
def _(
    q: torch.Tensor,
    k: torch.Tensor,  # noqa: ARG001 (a fake has its operator's signature)
    position: torch.Tensor,  # noqa: ARG001
    start: torch.Tensor,  # noqa: ARG001
    length: torch.Tensor,  # noqa: ARG001
    limit: torch.Tensor,  # noqa: ARG001
    heads: torch.Tensor,
    lse: torch.Tensor | None,  # noqa: ARG001
    scale: float,  # noqa: ARG001
    most: int,
    impl: str,
) -> torch.Tensor:
    dtype = torch.float64 if impl == "reference" and q.dtype == torch.float64 else torch.float32
    return torch.empty(q.shape[0], heads.shape[0], most, dtype=dtype, device=q.device)
