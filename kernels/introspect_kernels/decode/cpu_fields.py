"""From sums over a group's runs to the fields of `HeadStats`, and from groups to the whole batch."""

from __future__ import annotations

from typing import NamedTuple

import torch

from introspect_kernels.decode.packing import INDICES, REALS, PackedStats, unpack
from introspect_kernels.segments import NUM_SEGMENTS, Segment
from introspect_kernels.statistics import HeadStats


class Sums(NamedTuple):
    """What one pass leaves of a group: reals fp32 `[runs, group]` unless said otherwise.

    e = exp(score - largest score). "The image's own" are over image entries and relative to whatever score keeps
    them from underflow where the image gets next to no attention.

    Attributes:
        largest: the largest score.
        total: `[2, runs, group]`, sum e, and the image's own.
        times_score: `[2, runs, group]`, sum e (score - largest), and the image's own.
        image_peak: e of the image's largest score, relative to the same as the image's own sums.
        squared: sum e^2.
        mass: `[runs, group, 6]`, sum e per segment.
        distance: `[runs, group, 2]`, sum e (q - s) and sum e min(q - s, 10).
        at: `[runs, group, 2]`, e at s = q and at s = q - 1; NaN where there is no such entry.
        out: `[2, runs, group, head_dim]`, sum e v over all entries, and over image entries.
        argmax_position: `int32`, s of the largest score.
        image_argmax_position: `int32`, s of the largest score among image entries.
        retained: `int32 [runs, 6]`.
    """

    largest: torch.Tensor
    total: torch.Tensor
    times_score: torch.Tensor
    image_peak: torch.Tensor
    squared: torch.Tensor
    mass: torch.Tensor
    distance: torch.Tensor
    at: torch.Tensor
    out: torch.Tensor
    argmax_position: torch.Tensor
    image_argmax_position: torch.Tensor
    retained: torch.Tensor


class Fields(NamedTuple):
    """A group's, or the batch's, output and statistics; reals and indices in the order of `REALS` and `INDICES`.

    Attributes:
        out: `[runs, group, head_dim]`, fp32.
        reals: `[11, runs, group]`.
        mass: `[runs, group, 6]`.
        indices: `int32 [2, runs, group]`.
        retained: `int32 [runs, 6]`.
    """

    out: torch.Tensor
    reals: torch.Tensor
    mass: torch.Tensor
    indices: torch.Tensor
    retained: torch.Tensor


def finish(sums: Sums) -> Fields:
    """Normalise, and mark what does not exist."""
    logs = sums.total.log()
    entropy = logs - sums.times_score / sums.total
    share, image_share = sums.total.reciprocal().unbind()
    norm = torch.linalg.vector_norm(sums.out, dim=-1)
    linear = torch.cat([sums.at, sums.distance], -1) * share[..., None]
    image = torch.stack([entropy[1], sums.image_peak * image_share, norm[1] / norm[0]])
    absent = sums.retained[:, int(Segment.IMAGE), None] == 0
    image.masked_fill_(absent, torch.nan)
    main = torch.stack([sums.largest + logs[0], entropy[0], sums.squared * (share * share), share])
    return Fields(
        sums.out[0] * share[..., None],
        torch.cat([main, image, linear.movedim(-1, 0)]),
        sums.mass * share[..., None],
        torch.stack([sums.argmax_position, sums.image_argmax_position.masked_fill(absent, -1)]),
        sums.retained,
    )


def nothing(runs: int, group: int, head_dim: int, device: torch.device) -> Fields:
    """Runs without entries: a zero output, `lse` of -inf, nothing else known."""
    reals = torch.full((len(REALS), runs, group), torch.nan, device=device)
    reals[0] = -torch.inf
    return Fields(
        torch.zeros(runs, group, head_dim, device=device),
        reals,
        torch.full((runs, group, NUM_SEGMENTS), torch.nan, device=device),
        torch.full((len(INDICES), runs, group), -1, dtype=torch.int32, device=device),
        torch.zeros(runs, NUM_SEGMENTS, dtype=torch.int32, device=device),
    )


def place(whole: Fields, part: Fields, index: torch.Tensor) -> None:
    """Write a group's fields to its runs' places."""
    whole.out[index], whole.mass[index], whole.retained[index] = part.out, part.mass, part.retained
    whole.reals[:, index], whole.indices[:, index] = part.reals, part.indices


def head_stats(fields: Fields, batch: int) -> HeadStats:
    """The batch's fields as `HeadStats`."""
    reals, indices = fields.reals.view(len(REALS), batch, -1), fields.indices.view(len(INDICES), batch, -1)
    mass = fields.mass.view(batch, reals.shape[-1], NUM_SEGMENTS)
    return unpack(PackedStats(reals, mass, indices, fields.retained.view(batch, -1, NUM_SEGMENTS)))
