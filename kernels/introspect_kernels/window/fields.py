"""Head statistics of many rows as three tensors, which is what an operator can return, and back."""

from __future__ import annotations

import torch

from introspect_kernels.segments import NUM_SEGMENTS
from introspect_kernels.statistics import HeadStats

INDICES = ("argmax_position", "image_argmax_position")
REALS = tuple(name for name in HeadStats._fields if name not in (*INDICES, "mass", "retained"))
"""Order of the planes: lse, entropy, sum_sq, max_prob, image_entropy, image_max, image_output_share, self and previous mass, distances."""


def empty_fields(q: torch.Tensor, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Uninitialised `reals [11, batch, rows, num_heads]`, `indices [2, ...]` and `mass [batch, rows, num_heads, 6]`."""
    batch, num_heads, rows, _ = q.shape
    shape = (batch, rows, num_heads)
    return (
        torch.empty(len(REALS), *shape, dtype=dtype, device=q.device),
        torch.empty(len(INDICES), *shape, dtype=torch.int32, device=q.device),
        torch.empty(*shape, NUM_SEGMENTS, dtype=dtype, device=q.device),
    )


def as_head_stats(reals: torch.Tensor, indices: torch.Tensor, mass: torch.Tensor, retained: torch.Tensor) -> HeadStats:
    """The statistics by name."""
    fields = dict(zip(REALS, reals.unbind(), strict=True)) | dict(zip(INDICES, indices.unbind(), strict=True))
    return HeadStats(**fields, mass=mass, retained=retained)
