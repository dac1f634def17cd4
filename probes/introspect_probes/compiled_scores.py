"""Training-free scores that are read from an answer's rows, compiled by Numba: one call at its end, where NumPy takes some two hundred.

What they mean, and whose they are, is said where they have their names, in `training_free.py`. All of it is in one file: see
`compiled.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba import njit, types

ENTROPY, OUTPUT_SHARE, SELF, PREVIOUS, FAR, NEAR = 1, 6, 7, 8, 9, 10
"""Planes of `HeadRow.reals`."""
ARGMAX = 0
"""Plane of `HeadRow.indices`."""
TEMPLATE, IMAGE, GENERATED = 1, 2, 5
"""Segments."""
REALS, INDICES, SEGMENTS = 11, 2, 6
"""How many planes rows have, and how many segments."""
FLOOR = 1e-6
ALPHA, LOCAL = 0.2, 0.3
"""RAUQ's share of a word's own probability, and WAAD's of the heads that look nearest."""


@njit
def _at_least(value: float, least: float) -> Any:
    """The larger of both; what is not a number stays so."""
    return least if value < least else value


@njit
def _visual(mass: Any, said: Any) -> Any:
    _, layers, heads, _ = mass.shape
    found = 0.0
    for row in said:
        image = template = 0.0
        for layer in range(layers):
            for head in range(heads):
                image += mass[row, layer, head, IMAGE]
                template += mass[row, layer, head, TEMPLATE]
        found += image / (layers * heads) / _at_least(template / (layers * heads), FLOOR)
    return found / len(said)


@njit
def _of_middle(mass: Any, said: Any) -> Any:
    _, layers, heads, _ = mass.shape
    first = round(layers * 5 / 32)
    found = 0.0
    for row in said:
        for layer in range(first, max(round(layers * 18 / 32), first + 1)):
            for head in range(heads):
                found += mass[row, layer, head, IMAGE]
    return found / (heads * len(said))


@njit
def _lookback(mass: Any, retained: Any, said: Any) -> Any:
    _, layers, heads, _ = mass.shape
    group = heads // retained.shape[2]
    found = 0.0
    for row in said:
        for layer in range(layers):
            for head in range(heads):
                own, kept = mass[row, layer, head], retained[row, layer, head // group]
                prompt, entries = 0.0, 0
                for segment in range(GENERATED):
                    prompt, entries = prompt + own[segment], entries + kept[segment]
                prompt /= max(entries, 1)
                found += prompt / _at_least(prompt + own[GENERATED] / max(kept[GENERATED], 1), FLOOR)
    return found / (layers * heads * len(said))


@njit
def _on_generated(mass: Any, said: Any) -> Any:
    heads, found = mass.shape[2], 0.0
    for row in said:
        for head in range(heads):
            found += mass[row, 0, head, GENERATED]
    return found / (heads * len(said))


@njit
def _on_itself(reals: Any, read: Any) -> Any:
    _, _, layers, heads = reals.shape
    found = 0.0
    for row in read:
        for head in range(heads):
            found += math.log(_at_least(float(reals[row, SELF, layers // 2, head]), FLOOR))
    return found / len(read)


@njit
def _number(value: float) -> Any:
    return 0.0 if math.isnan(value) else float(value)


@njit
def _recurrent(reals: Any, read: Any, probabilities: Any) -> Any:
    _, _, layers, heads = reals.shape
    count, found = min(len(probabilities), len(read)), -np.inf
    if len(read) < 2:
        return np.nan
    for layer in range(layers // 3, -(-2 * layers // 3)):
        backward, most = 0, -1.0
        for head in range(heads):
            looks = 0.0
            for row in read[1:]:
                looks += _number(reals[row, PREVIOUS, layer, head])
            if looks > most:
                backward, most = head, looks
        last = probabilities[0]
        total = math.log(_at_least(last, FLOOR))
        for word in range(1, count):
            last = ALPHA * probabilities[word] + (1 - ALPHA) * _number(reals[read[word], PREVIOUS, layer, backward]) * last
            total += math.log(_at_least(last, FLOOR))
        found = max(found, 1 - total / count)
    return found


@njit
def _near(reals: Any, said: Any) -> Any:
    _, _, layers, heads = reals.shape
    far, near = np.zeros(layers * heads), np.zeros(layers * heads)
    for row in said:
        for layer in range(layers):
            for head in range(heads):
                far[layer * heads + head] += reals[row, FAR, layer, head]
                near[layer * heads + head] += reals[row, NEAR, layer, head]
    local = max(1, round(LOCAL * len(far)))
    return near[np.argsort(far, kind="mergesort")[:local]].sum() / (local * len(said))


@njit
def _on_what_is_said(indices: Any, said: Any, prompt: Any, words: Any) -> Any:
    _, _, layers, heads = indices.shape
    found = 0
    for word in range(len(said)):
        for layer in range(layers):
            for head in range(heads):
                place = indices[said[word], ARGMAX, layer, head]
                found += 0 <= place < len(prompt) and prompt[place] == words[word]
    return found / (layers * heads * len(said))


@njit
def _of_image(reals: Any, said: Any) -> Any:
    _, _, layers, heads = reals.shape
    found, count = 0.0, 0
    for row in said:
        for layer in range(layers):
            for head in range(heads):
                share = reals[row, OUTPUT_SHARE, layer, head]
                if not math.isnan(share):
                    found, count = found + share, count + 1
    return found / count


@njit
def _agreement(indices: Any, said: Any) -> Any:
    _, _, layers, heads = indices.shape
    found = 0
    for row in said:
        for layer in range(layers):
            places, most = indices[row, ARGMAX, layer], 0
            for one in places:
                same = 0
                for other in places:
                    same += one == other
                most = max(most, same)
            found += most
    return found / (heads * layers * len(said))


@njit
def _spread(reals: Any, retained: Any, said: Any) -> Any:
    _, _, layers, heads = reals.shape
    group, found = heads // retained.shape[2], 0.0
    for row in said:
        shares, several = 0.0, 0
        for layer in range(layers):
            for head in range(heads):
                entries = retained[row, layer, head // group].sum()
                if entries > 1:
                    shares, several = shares + reals[row, ENTROPY, layer, head] / math.log(entries), several + 1
        found += shares / several
    return found / len(said)


def _scores(
    reals: Any, indices: Any, mass: Any, retained: Any, said: Any, read: Any, prompt: Any, words: Any, probabilities: Any
) -> Any:  # fmt: skip
    rows, _, layers, heads = reals.shape
    fits = reals.shape[1] == REALS and indices.shape == (rows, INDICES, layers, heads) and mass.shape == (rows, layers, heads, SEGMENTS)
    if not fits or retained.shape != (rows, layers, retained.shape[2], SEGMENTS):
        raise ValueError("expected the four arrays of a row of head statistics, all of one model; give rows as the engine makes them")
    return (
        _visual(mass, said), _of_middle(mass, said), _lookback(mass, retained, said), _on_generated(mass, said),
        _on_itself(reals, read), _recurrent(reals, read, probabilities), _near(reals, said),
        _on_what_is_said(indices, said, prompt, words), _of_image(reals, said), _agreement(indices, said), _spread(reals, retained, said),
    )  # fmt: skip


@cache
def compiled() -> Callable[..., tuple[float, ...]]:
    """The function that works out the numbers of `training_free.Attended`, in order; compiled, or loaded, at the first call.

    Arguments are the four arrays of `HeadRow.joined`; which of the rows predicted a word, and which read one; token ids of
    the prompt and of the predicted words; and the words' probabilities. NaN is what such an answer does not allow.
    """
    row = [types.Array(kind, 4, "C", readonly=True) for kind in (types.float32, types.int32, types.float32, types.int32)]
    ids = types.Array(types.int64, 1, "C", readonly=True)
    signature = types.UniTuple(types.float64, 11)(*row, ids, ids, ids, ids, types.Array(types.float64, 1, "C", readonly=True))
    try:
        return njit(signature, cache=True, error_model="numpy")(_scores)  # type: ignore[no-any-return]
    except RuntimeError:  # neither the package's folder nor the user's cache can be written to
        return njit(signature, error_model="numpy")(_scores)  # type: ignore[no-any-return]
