"""Head statistics as four tensors, the form in which kernels fill them and a torch operator returns them."""

from __future__ import annotations

from typing import NamedTuple

import torch

from introspect_kernels.statistics import HeadStats

REALS = (
    "lse",
    "entropy",
    "sum_sq",
    "max_prob",
    "image_entropy",
    "image_max",
    "image_output_share",
    "self_mass",
    "previous_mass",
    "mean_distance",
    "windowed_distance",
)
"""Fields of `HeadStats` in the order of `PackedStats.reals`."""
INDICES = ("argmax_position", "image_argmax_position")
"""Fields of `HeadStats` in the order of `PackedStats.indices`."""


class PackedStats(NamedTuple):
    """`HeadStats` by type of field.

    Attributes:
        reals: `float32 [11, batch, num_heads]`, in the order of `REALS`.
        mass: `float32 [batch, num_heads, 6]`.
        indices: `int32 [2, batch, num_heads]`, in the order of `INDICES`.
        retained: `int32 [batch, num_kv_heads, 6]`.
    """

    reals: torch.Tensor
    mass: torch.Tensor
    indices: torch.Tensor
    retained: torch.Tensor


def pack(stats: HeadStats) -> PackedStats:
    """The packed form; copies."""
    return PackedStats(
        torch.stack([getattr(stats, name).float() for name in REALS]),
        stats.mass.float().clone(),
        torch.stack([getattr(stats, name).to(torch.int32) for name in INDICES]),
        stats.retained.to(torch.int32).clone(),
    )


def unpack(packed: PackedStats) -> HeadStats:
    """The fields as views."""
    # One by one and in order: looking names up would take longer than a small step's arithmetic.
    lse, entropy, sum_sq, most, within, most_within, share, itself, previous, distance, windowed = packed.reals.unbind(0)
    at, at_within = packed.indices.unbind(0)
    return HeadStats(
        lse,
        entropy,
        sum_sq,
        most,
        at,
        packed.mass,
        within,
        most_within,
        at_within,
        share,
        itself,
        previous,
        distance,
        windowed,
        packed.retained,
    )
