"""One chunk of a run: scores, exponentials and every sum that the statistics need; compiled by Numba.

Image entries and all others are two softmaxes, each relative to its own largest score, so that what is inside the
image does not underflow where the image is far below the rest. `cpu_combine` joins chunks, then the two.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from introspect_kernels.decode.cpu_exponentials import exponentials
from introspect_kernels.decode.cpu_products import add_values, scores_of
from introspect_kernels.decode.cpu_scalars import ZERO, larger
from introspect_kernels.segments import NUM_SEGMENTS, Segment
from introspect_kernels.statistics import WINDOW

REST, IMAGE_PART = 0, 1
LARGEST, TOTAL, TIMES_SCORE, SQUARED, DISTANCE, WINDOWED, SELF, PREVIOUS, SUMS = range(9)
_IMAGE = int(Segment.IMAGE)
_WINDOW = np.int32(WINDOW)
_LOWEST = np.float32(-np.inf)
_STRETCH = 64  # entries looked at together
_SEARCHED = 256  # likewise


# These loop over whole arrays, slices where it is a part: of an index that might be negative Numba makes a choice, and does
# not vectorise.


@njit
def _largest(scores: Any) -> Any:
    """The largest of some scores; anything if one is NaN, which the sums then show."""
    found = _LOWEST
    for j in range(scores.shape[0]):
        found = larger(found, scores[j])
    return found


@njit
def _first_largest(scores: Any) -> Any:
    """Index of the first of the largest scores: looked for only where the largest is."""
    found, at = _LOWEST, 0
    for begin in range(0, scores.shape[0], _SEARCHED):
        largest = _largest(scores[begin : min(begin + _SEARCHED, scores.shape[0])])
        if largest > found:
            found, at = largest, begin
    return at + _index_of(scores[at : min(at + _SEARCHED, scores.shape[0])], found)


@njit
def _index_of(scores: Any, value: Any) -> Any:
    """Index of the first score that equals a value; 0 if none does. Looking at all vectorises, stopping does not."""
    none = np.int32(scores.shape[0])
    found = none
    for j in range(scores.shape[0]):
        here = np.int32(j) if scores[j] == value else none
        if here < found:
            found = here
    return found if found < none else 0


@njit
def _pieces(segment: Any, ends: Any) -> int:
    """Where the segment changes: the pieces' ends go to `ends`; returns how many pieces there are, 0 if a segment is none."""
    count, found, largest = segment.shape[0], 0, segment[0]
    for begin in range(0, count - 1, _STRETCH):
        end = min(begin + _STRETCH, count - 1)
        if _is_one(segment[begin : end + 1]):
            continue
        for j in range(begin, end):
            if segment[j] != segment[j + 1]:
                ends[found] = j + 1
                found += 1
                largest = max(largest, segment[j + 1])
    ends[found] = count
    return found + 1 if largest < NUM_SEGMENTS else 0


@njit
def _is_one(segment: Any) -> Any:
    """Whether all entries are of the first one's segment. Looking at all vectorises, stopping does not."""
    differ = np.uint8(0)
    for j in range(segment.shape[0]):
        differ |= segment[j] ^ segment[0]
    return differ == 0


@njit
def _add_near(e: Any, position: Any, first: int, count: int, query: Any, segment: Any, sums: Any) -> None:
    """What depends on entries near the query, which ascending positions put at the end.

    It is e at s = q and at s = q - 1, and the windowed distance, which is the window's width for all others.
    """
    for g in range(e.shape[0]):
        for part in range(2):
            sums[g, part, WINDOWED] = _WINDOW * sums[g, part, TOTAL]
    for j in range(count - 1, -1, -1):
        far = query - position[first + j]
        if far >= _WINDOW:
            return
        part = IMAGE_PART if segment[first + j] == _IMAGE else REST
        for g in range(e.shape[0]):
            sums[g, part, WINDOWED] -= (_WINDOW - far) * e[g, j]
            if far <= 1:
                at = SELF if far == 0 else PREVIOUS
                sums[g, part, at] = e[g, j] + (ZERO if np.isnan(sums[g, part, at]) else sums[g, part, at])


@njit
def attend_chunk(
    q: Any,
    k: Any,
    v: Any,
    position: Any,
    segment: Any,
    first: int,
    count: int,
    query: Any,
    measure: bool,
    e: Any,
    ends: Any,
    sums: Any,
    mass: Any,
    best: Any,
    retained: Any,
    out: Any,
) -> bool:
    """Everything about entries `[first, first + count)`.

    Args:
        q: fp32 `[group, head_dim]`, scaled.
        k: `[slots, head_dim]`, any type that `as_float` takes.
        v: likewise.
        position: `int32 [slots]`.
        segment: `uint8 [slots]`.
        first: slot.
        count: entries, at least one.
        query: int32, the query's token index.
        measure: whether statistics are wanted; the output is the same to the bit without.
        e: fp32 `[group, >= count]`: afterwards e^(score - largest of its part).
        ends: int64 `[>= count]`, scratch.
        sums: fp32 `[group, 2, SUMS]`, written, for the rest and for the image.
        mass: fp32 `[group, 6]`, written: sum e per segment, relative to the largest of the segment's part.
        best: int32 `[group, 2]`, written: position of the largest score.
        retained: int32 `[6]`, written.
        out: fp32 `[2, group, head_dim]`, written: sum e v.

    Returns:
        Whether every entry's segment is one.
    """
    group = q.shape[0]
    pieces = _pieces(segment[first : first + count], ends)
    if not pieces:
        return False
    scores_of(q, k, v, first, count, e)
    sums[:, :, :] = ZERO
    sums[:, :, LARGEST], sums[:, :, SELF:] = _LOWEST, np.float32(np.nan)
    mass[:, :], out[:, :, :], best[:, :], retained[:] = ZERO, ZERO, -1, 0
    low = 0
    for piece in range(pieces):
        high = ends[piece]
        part = IMAGE_PART if segment[first + low] == _IMAGE else REST
        retained[segment[first + low]] += high - low
        for g in range(group):
            largest = _largest(e[g, low:high])
            if best[g, part] < 0 or largest > sums[g, part, LARGEST]:
                sums[g, part, LARGEST] = largest
                best[g, part] = position[first + low + _first_largest(e[g, low:high])] if measure else 0
        low = high
    low, found = 0, np.empty(4, np.float32)
    for piece in range(pieces):
        high = ends[piece]
        kind = segment[first + low]
        part = IMAGE_PART if kind == _IMAGE else REST
        for g in range(group):
            # Where everything is masked, zero stands in for -inf: every e is then zero, not NaN.
            largest = max(sums[g, part, LARGEST], np.float32(-3e38))
            exponentials(measure, e, g, low, high - low, largest, position, first + low, query, found)
            mass[g, kind] += found[0]
            for n in range(4):
                sums[g, part, TOTAL + n] += found[n]
        add_values(e, low, v, first + low, high - low, first + count, out[part])
        low = high
    if measure:
        _add_near(e, position, first, count, query, segment, sums)
    return True
