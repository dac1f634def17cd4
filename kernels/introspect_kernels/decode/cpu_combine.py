"""Joins the chunks of a run, then image and rest, and fills in what is returned; compiled by Numba.

Sums are over few chunks and in fp64, so joining costs no precision.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from introspect_kernels.decode.cpu_chunk import (
    DISTANCE,
    IMAGE_PART,
    LARGEST,
    PREVIOUS,
    REST,
    SELF,
    SQUARED,
    TIMES_SCORE,
    TOTAL,
    WINDOWED,
)
from introspect_kernels.decode.cpu_scalars import FAST
from introspect_kernels.segments import NUM_SEGMENTS, Segment

WHOLE, INSIDE = 0, 1  # of joined sums: all entries, and the image alone
_IMAGE = int(Segment.IMAGE)
_LSE, _ENTROPY, _SUM_SQ, _MAX_PROB, _IMAGE_ENTROPY, _IMAGE_MAX, _IMAGE_SHARE, _SELF, _PREVIOUS, _MEAN_DISTANCE, _WINDOWED = range(11)


@njit(error_model="numpy")  # 0 / 0 is NaN, not an error
def combine_head(chunks: int, g: int, measure: bool, sums: Any, out: Any, weights: Any, joined: Any, whole: Any, image: Any) -> float:
    """The normalised output and the joined sums of one query head.

    Args:
        chunks: how many the run has; without any, the output is zero.
        g: which head of the group.
        measure: whether statistics are wanted.
        sums: `[chunks, group, 2, SUMS]`, as `attend_chunk` leaves them.
        out: `[chunks, 2, group, head_dim]`, likewise.
        weights: fp64 `[chunks, 2]`, written: what the e of a chunk's part weigh relative to the whole's largest score.
        joined: fp64 `[2, SUMS]`, written: `WHOLE` and `INSIDE`.
        whole: fp32 `[head_dim]`, written: the output.
        image: fp32 `[head_dim]`, scratch.

    Returns:
        The norm of the image's part of the output over the whole's; NaN without statistics.
    """
    joined[:, :] = 0.0
    joined[:, LARGEST] = -np.inf
    joined[:, SELF:] = np.nan
    for c in range(chunks):
        joined[INSIDE, LARGEST] = max(joined[INSIDE, LARGEST], float(sums[c, g, IMAGE_PART, LARGEST]))
        joined[WHOLE, LARGEST] = max(joined[WHOLE, LARGEST], float(sums[c, g, REST, LARGEST]))
    joined[WHOLE, LARGEST] = max(joined[WHOLE, LARGEST], joined[INSIDE, LARGEST])
    whole[:], image[:] = np.float32(0), np.float32(0)
    for c in range(chunks):
        for part in range(2):
            weights[c, part] = _weight(sums[c, g, part], joined[WHOLE])
            _add_scaled(image if part == IMAGE_PART else whole, np.float32(weights[c, part]), out[c, part, g])
            _add(joined[WHOLE], sums[c, g, part], weights[c, part])
        if measure:
            _add(joined[INSIDE], sums[c, g, IMAGE_PART], _weight(sums[c, g, IMAGE_PART], joined[INSIDE]))
    share = np.float32(1.0 / joined[WHOLE, TOTAL])
    for i in range(whole.shape[0]):
        whole[i] = (whole[i] + image[i]) * share if chunks else np.float32(0)
    return _norm(image) * share / _norm(whole) if measure else np.nan


@njit
def _add_scaled(total: Any, weight: Any, x: Any) -> None:
    """`total += weight x`."""
    for i in range(total.shape[0]):
        total[i] += weight * x[i]


@njit(fastmath=FAST)
def _norm(x: Any) -> float:
    """Euclidean length."""
    total = np.float32(0)
    for i in range(x.shape[0]):
        total += x[i] * x[i]
    return math.sqrt(total)


@njit
def _add(joined: Any, sums: Any, weight: float) -> None:
    """Add the sums of one part of one chunk, whose e weigh that much."""
    for at in (SELF, PREVIOUS):
        if not np.isnan(sums[at]):
            joined[at] = weight * float(sums[at]) + (0.0 if np.isnan(joined[at]) else joined[at])
    if weight != 0.0:
        total = float(sums[TOTAL])
        joined[TOTAL] += weight * total
        joined[TIMES_SCORE] += weight * (float(sums[TIMES_SCORE]) + (float(sums[LARGEST]) - joined[LARGEST]) * total)
        joined[SQUARED] += weight * weight * float(sums[SQUARED])
        joined[DISTANCE] += weight * float(sums[DISTANCE])
        joined[WINDOWED] += weight * float(sums[WINDOWED])


@njit
def _weight(sums: Any, joined: Any) -> float:
    """e^(largest - the largest of all): zero where a part is empty or masked, NaN where all is."""
    return math.exp(float(sums[LARGEST]) - joined[LARGEST])


@njit
def write_reals(joined: Any, output_share: float, empty: bool, has_image: bool, reals: Any) -> None:
    """Every real field but masses, of one head, in the order of `packing.REALS`; NaN where there is no such thing.

    Args:
        joined: see `combine_head`.
        output_share: what `combine_head` returned.
        empty: whether the run has no entries.
        has_image: whether an image entry is retained.
        reals: fp32 `[11]`, written.
    """
    whole, image = joined[WHOLE], joined[INSIDE]
    reals[:] = np.nan
    if empty:
        reals[_LSE] = -np.inf
    else:
        log_total = math.log(whole[TOTAL])
        reals[_LSE] = whole[LARGEST] + log_total
        reals[_ENTROPY] = log_total - whole[TIMES_SCORE] / whole[TOTAL]
        reals[_SUM_SQ] = whole[SQUARED] / (whole[TOTAL] * whole[TOTAL])
        reals[_MAX_PROB] = 1.0 / whole[TOTAL]
        reals[_SELF] = whole[SELF] / whole[TOTAL]
        reals[_PREVIOUS] = whole[PREVIOUS] / whole[TOTAL]
        reals[_MEAN_DISTANCE] = whole[DISTANCE] / whole[TOTAL]
        reals[_WINDOWED] = whole[WINDOWED] / whole[TOTAL]
        if has_image:
            reals[_IMAGE_SHARE] = output_share
    if has_image:
        reals[_IMAGE_ENTROPY] = math.log(image[TOTAL]) - image[TIMES_SCORE] / image[TOTAL]
        reals[_IMAGE_MAX] = 1.0 / image[TOTAL]


@njit(error_model="numpy")
def write_masses(chunks: int, g: int, weights: Any, mass: Any, joined: Any, masses: Any) -> None:
    """The share of each segment, of one head.

    Args:
        chunks: how many the run has.
        g: which head of the group.
        weights: see `combine_head`.
        mass: `[chunks, group, 6]`, as `attend_chunk` leaves it.
        joined: see `combine_head`.
        masses: fp32 `[6]`, written; NaN without entries.
    """
    for s in range(NUM_SEGMENTS):
        total = 0.0
        for c in range(chunks):
            total += weights[c, IMAGE_PART if s == _IMAGE else REST] * float(mass[c, g, s])
        masses[s] = total / joined[WHOLE, TOTAL]


@njit
def best_of(chunks: int, g: int, sums: Any, best: Any) -> Any:
    """Positions of the largest score of all, and of the image's; the earliest among equals, -1 without entries."""
    rest, rest_score = _best_of_part(chunks, g, REST, sums, best)
    image, image_score = _best_of_part(chunks, g, IMAGE_PART, sums, best)
    if rest < 0 or image < 0:
        return max(rest, image), image
    if rest_score == image_score:
        return min(rest, image), image
    return (rest if rest_score > image_score else image), image


@njit
def _best_of_part(chunks: int, g: int, part: int, sums: Any, best: Any) -> Any:
    """Position of the largest score of a part in any chunk, and the score."""
    found, largest = np.int32(-1), np.float32(-np.inf)
    for c in range(chunks):
        if best[c, g, part] >= 0 and (found < 0 or sums[c, g, part, LARGEST] > largest):
            found, largest = best[c, g, part], sums[c, g, part, LARGEST]
    return found, largest
