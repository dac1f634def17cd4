"""The operators as torch knows them: opaque to `torch.compile`, whichever implementation runs."""

from __future__ import annotations

from collections.abc import Callable

import torch

from introspect_kernels.window.fields import empty_fields
from introspect_kernels.window.reference import row_statistics_reference, window_scores_reference
from introspect_kernels.window.vectorised import row_statistics_vectorised, window_scores_vectorised

WindowScores = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None, float, str], torch.Tensor]
RowStatistics = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, float],
    tuple[torch.Tensor, torch.Tensor, torch.Tensor],
]

IMPLEMENTATIONS = ("vectorised", "reference", "triton")


def _window_scores_by(impl: str) -> WindowScores:
    if impl == "triton":
        from introspect_kernels.window.triton_scores import window_scores_triton

        return window_scores_triton
    return window_scores_vectorised if impl == "vectorised" else window_scores_reference


def _row_statistics_by(impl: str) -> RowStatistics:
    if impl == "triton":
        from introspect_kernels.window.triton_rows import row_statistics_triton

        return row_statistics_triton
    return row_statistics_vectorised if impl == "vectorised" else row_statistics_reference


@torch.library.custom_op("introspect::window_scores", mutates_args=())
def window_scores_op(
    q: torch.Tensor,
    k: torch.Tensor,
    limit: torch.Tensor,
    first: torch.Tensor,
    lse: torch.Tensor | None,
    scale: float,
    reduce: str,
    impl: str,
) -> torch.Tensor:
    """Scores `[batch, num_kv_heads, tokens]`, not pooled."""
    return _window_scores_by(impl)(q, k, limit, first, lse, scale, reduce)


@window_scores_op.register_fake
def _(
    q: torch.Tensor,
    k: torch.Tensor,
    limit: torch.Tensor,  # noqa: ARG001 (a fake has its operator's signature)
    first: torch.Tensor,  # noqa: ARG001
    lse: torch.Tensor | None,  # noqa: ARG001
    scale: float,  # noqa: ARG001
    reduce: str,  # noqa: ARG001
    impl: str,
) -> torch.Tensor:
    return torch.empty(k.shape[:3], dtype=_real(q, impl), device=q.device)


@torch.library.custom_op("introspect::row_statistics", mutates_args=())
def row_statistics_op(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    segment: torch.Tensor,
    limit: torch.Tensor,
    first: torch.Tensor,
    scale: float,
    impl: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The tensors of `window/fields.py`."""
    return _row_statistics_by(impl)(q, k, v, segment, limit, first, scale)


@row_statistics_op.register_fake
def _(
    q: torch.Tensor,
    k: torch.Tensor,  # noqa: ARG001
    v: torch.Tensor,  # noqa: ARG001
    segment: torch.Tensor,  # noqa: ARG001
    limit: torch.Tensor,  # noqa: ARG001
    first: torch.Tensor,  # noqa: ARG001
    scale: float,  # noqa: ARG001
    impl: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return empty_fields(q, _real(q, impl))


def _real(q: torch.Tensor, impl: str) -> torch.dtype:
    return torch.float64 if impl == "reference" and q.dtype == torch.float64 else torch.float32
