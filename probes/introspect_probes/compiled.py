"""What is worked out for each token of a served answer, compiled by Numba: one call, where NumPy takes some forty.

Numbers come and go in plain arrays, which `narrow.py` lays out and `Answer` names: tables of the probe set (`ints`,
`standard`, `weights`), and of one answer its features (`x`) and its running numbers (`state`). Values are those of
`features.token_features`, `probe_set.answer_features` and `linear.LinearProbe`, which say what they mean.

All of it is in one file: Numba's cache notices a change in the file of a function, not in that of another which it calls.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba import from_dtype, njit, types

# Where what begins in `ints`.
(LAYERS, HEADS, KV_HEADS, COLUMNS, KINDS, MEANS, HAS_CLAIMS, STATES) = range(8)
(BLOCKS, OFFSETS, DIVISORS, ENDS, ENTRIES, SUMMED) = range(8, 14)
(X_MEANS, X_LOGITS, X_PLACE, X_KIND, X_COUNTS, X_RISKS) = range(14, 20)
(S_COUNTS, S_STATES, S_SUMS, S_DIVISORS, S_ORDERED) = range(20, 25)
# What stands where in `state`; what has as many numbers as there are kinds, states or columns comes behind.
(CONFIDENCE, RISK, INTERNAL, PRIOR) = range(4)
(CONFIDENCE_A, CONFIDENCE_B, RISK_A, RISK_B, TEMPERATURE, FACTOR) = range(4, 10)
(WORDS, CLAIMS, LARGEST, TOTAL, ALL_TRUE) = range(10, 15)
(TOKENS, LOGPROBS, ENTROPIES, LOWEST, HIGHEST, PREVIOUS) = range(15, 21)
LOGICAL = 21
SEGMENTS, IMAGE = 6, 2
NUMBERS = LOGICAL + SEGMENTS
# Divisors of a row's statistics: these, then two for each KV head, of all its entries and of those of the image.
WHOLE, POSITION, WINDOW, BY_SEGMENT = range(4)
BY_HEAD = BY_SEGMENT + SEGMENTS
# Where columns are taken from, in order: blocks of a row as they are, then each of `features.LAYER_STATISTICS`.
OF_REALS, OF_MASS, OF_RETAINED, GINI, PARTICIPATION, ACTIVE, CONSENSUS = range(7)
ROW = ("reals", "indices", "mass", "retained")
"""What `compiled()` takes of a row, in order."""
ROW_TYPES = (np.float32, np.int32, np.float32, np.int32)
"""Type of each; all have three dimensions."""
REALS, INDICES, ARGMAX = 11, 2, 0
"""How many planes the first two have, and which of the second is `argmax_position`."""
# What it is to do, in this order: bits of one number.
READ, SCORE, COMMIT, SHIFT, WORD = 1, 2, 4, 8, 16
CONFIDENCE_OUT, INTERNAL_OUT, PRIOR_OUT, STATE_OUT = range(4)
NEXT_ENTROPY = 13
_FLOOR, _LIMIT = -20.0, 30.0


@njit
def _probability(logit: float) -> Any:
    return 1.0 / (1.0 + math.exp(-min(max(logit, -60.0), 60.0)))


@njit
def _within(value: float) -> Any:
    return min(max(value, -_LIMIT), _LIMIT)


@njit
def _gather(ints: Any, x: Any, state: Any, block: int, values: Any) -> None:
    """A block's columns, each over its divisor; what does not exist is 0."""
    offsets, divided = ints[ints[OFFSETS] :], ints[ints[DIVISORS] :]
    divisors, out = state[ints[S_DIVISORS] :], x[ints[COLUMNS] :]
    for column in range(ints[ints[BLOCKS] + block], ints[ints[BLOCKS] + block + 1]):
        value = np.float64(values[offsets[column]]) / divisors[divided[column]]
        out[column] = value if value > -np.inf else 0.0


@njit
def _across(ints: Any, x: Any, state: Any, mass: Any, argmax: Any) -> None:
    """Columns of `features.layer_statistic`."""
    out, ordered = x[ints[COLUMNS] :], state[ints[S_ORDERED] : ints[S_ORDERED] + ints[HEADS]]
    for statistic in range(GINI, CONSENSUS + 1):
        for column in range(ints[ints[BLOCKS] + statistic], ints[ints[BLOCKS] + statistic + 1]):
            layer = ints[ints[OFFSETS] + column]
            out[column] = _party(argmax[layer]) if statistic == CONSENSUS else _spread(mass[layer], ordered, statistic)


@njit
def _party(looked_at: Any) -> Any:
    """Share of the heads that agree with the commonest of their values."""
    most = 0
    for one in looked_at:
        same = 0
        for other in looked_at:
            same += one == other
        most = max(most, same)
    return most / len(looked_at)


@njit
def _spread(mass: Any, ordered: Any, statistic: int) -> Any:
    """Gini coefficient, participation ratio or active share of the heads' image mass."""
    heads, total, squares, active, ranked = len(ordered), 0.0, 0.0, 0, 0.0
    for head in range(heads):
        image = 0.0 if math.isnan(mass[head, IMAGE]) else float(mass[head, IMAGE])
        total, squares, active = total + image, squares + image * image, active + (1 if image > 0.5 else 0)
        place = head
        while place > 0 and ordered[place - 1] > image:
            ordered[place] = ordered[place - 1]
            place -= 1
        ordered[place] = image
    total = max(total, 1e-9)
    if statistic == ACTIVE:
        return active / heads
    if statistic == PARTICIPATION:
        return total * total / (heads * max(squares, 1e-12))
    for rank in range(heads):
        ranked += 2.0 * (rank + 1) * ordered[rank]
    return ranked / (heads * total) - (heads + 1) / heads


@njit
def _fits(ints: Any, reals: Any, indices: Any, mass: Any, retained: Any) -> Any:
    """Whether arrays are of the tables' sizes: nothing looks where they end."""
    layers, heads, kv_heads = ints[LAYERS], ints[HEADS], ints[KV_HEADS]
    of_heads = reals.shape == (REALS, layers, heads) and indices.shape == (INDICES, layers, heads)
    return of_heads and mass.shape == (layers, heads, SEGMENTS) and retained.shape == (layers, kv_heads, SEGMENTS)


@njit
def _divide_by(ints: Any, state: Any, retained: Any, position: int) -> None:
    divisors = state[ints[S_DIVISORS] :]
    divisors[WHOLE], divisors[POSITION], divisors[WINDOW] = 1.0, max(1, position), 10.0
    for segment in range(SEGMENTS):
        divisors[BY_SEGMENT + segment] = state[LOGICAL + segment]
    for head in range(ints[LAYERS] * ints[KV_HEADS]):
        kept = retained[head // ints[KV_HEADS], head % ints[KV_HEADS]]
        divisors[BY_HEAD + 2 * head] = math.log(max(kept.sum(), 2))
        divisors[BY_HEAD + 2 * head + 1] = math.log(max(kept[IMAGE], 2))


@njit
def _logit(ints: Any, standard: Any, weights: Any, x: Any, output: int) -> Any:
    """Of one output of the probes: only features with a weight, in deviations of the fit, within 8."""
    places, first, last = ints[ints[ENTRIES] :], ints[ints[ENDS] + output], ints[ints[ENDS] + output + 1]
    total = 0.0
    for entry in range(first, last):
        deviation = (x[places[entry]] - standard[0, entry]) / standard[1, entry]
        total += weights[entry] * min(max(deviation, np.float32(-8)), np.float32(8))
    return total + weights[standard.shape[1] + output]


@njit
def _claim(ints: Any, standard: Any, weights: Any, x: Any, state: Any, kind: int) -> None:
    """Risk and strategy of the word's claim."""
    for known in range(ints[KINDS]):
        x[ints[X_KIND] + known] = known == kind
    if ints[HAS_CLAIMS]:
        internal, prior = _logit(ints, standard, weights, x, INTERNAL_OUT), _logit(ints, standard, weights, x, PRIOR_OUT)
        state[INTERNAL], state[PRIOR] = _probability(internal), _probability(prior)
        state[RISK] = _probability(-(state[RISK_A] * (internal + prior) + state[RISK_B]))
    states = state[ints[S_STATES] : ints[S_STATES] + ints[STATES]]
    highest, total = -np.inf, 0.0
    for number in range(len(states)):
        states[number] = _logit(ints, standard, weights, x, STATE_OUT + number) / state[TEMPERATURE]
        highest = max(highest, states[number])
    for number in range(len(states)):
        states[number] = math.exp(states[number] - highest)
        total += states[number]
    states /= total


@njit
def _score(ints: Any, standard: Any, weights: Any, x: Any, state: Any, kind: int, following: float, commit: int) -> None:
    """What is said of the word whose rows are in `x`; with `commit` it is the last word on it."""
    if not math.isnan(following):
        x[ints[X_LOGITS] + NEXT_ENTROPY] = _within(following)
    words, claims, largest, total, all_true = state[WORDS] + 1, state[CLAIMS], state[LARGEST], state[TOTAL], state[ALL_TRUE]
    if kind >= 0:
        _claim(ints, standard, weights, x, state, kind)
    is_known = kind >= 0 and ints[HAS_CLAIMS] == 1
    if is_known:
        risk = state[RISK]
        claims, largest, total = claims + 1, max(largest, risk), total + risk
        all_true += math.log1p(-min(max(risk, 1e-4), 1 - 1e-4))
    counts, sums = state[ints[S_COUNTS] :], state[ints[S_SUMS] :]
    for known in range(ints[KINDS]):
        count = counts[known] + (1 if is_known and known == kind else 0)
        x[ints[X_COUNTS] + known] = math.log1p(count)
        counts[known] = count if commit else counts[known]
    for number in range(ints[MEANS]):
        found = sums[number] + x[ints[ints[SUMMED] + number]]
        x[ints[X_MEANS] + number] = found / words
        sums[number] = found if commit else sums[number]
    risks = x[ints[X_RISKS] :]
    risks[0], risks[1], risks[2] = largest, total / claims if claims else 0.0, all_true
    risks[3], risks[4], risks[5] = math.log(-math.expm1(min(all_true, -1e-6))), claims, math.log1p(words)
    logit = _logit(ints, standard, weights, x, CONFIDENCE_OUT)
    state[CONFIDENCE] = state[FACTOR] * _probability(-(state[CONFIDENCE_A] * logit + state[CONFIDENCE_B]))
    if commit:
        state[WORDS], state[CLAIMS], state[LARGEST], state[TOTAL], state[ALL_TRUE] = words, claims, largest, total, all_true


@njit
def _add_word(
    ints: Any, x: Any, state: Any, logprob: float, entropy: float, margin: float,
    top1: float, top2: float, top3: float, top4: float, top5: float, repetition: int,
) -> None:  # fmt: skip
    """Features of the next token's distribution, of the answer's so far, and of its place."""
    state[TOKENS], state[LOGPROBS], state[ENTROPIES] = state[TOKENS] + 1, state[LOGPROBS] + logprob, state[ENTROPIES] + entropy
    state[LOWEST], state[HIGHEST] = min(state[LOWEST], logprob), max(state[HIGHEST], entropy)
    count, logits, place = state[TOKENS], x[ints[X_LOGITS] :], x[ints[X_PLACE] :]
    logits[0], logits[1], logits[2] = _within(logprob), _within(entropy), _within(margin)
    logits[3], logits[4], logits[5], logits[6], logits[7] = _within(top1), _within(top2), _within(top3), _within(top4), _within(top5)
    logits[8], logits[9] = _within(state[LOGPROBS] / count), _within(state[LOWEST])
    logits[10], logits[11] = _within(state[ENTROPIES] / count), _within(state[HIGHEST])
    logits[12], logits[NEXT_ENTROPY] = _within(state[PREVIOUS]), _within(entropy)
    state[PREVIOUS] = logprob
    place[0], place[1], place[2], place[3] = count - 1, math.log1p(count - 1), min(repetition, 4), count == 1


@cache
def compiled() -> Callable[..., float]:
    """The function that does to an answer's numbers what a step of the engine asks for; compiled, or loaded, at the first call.

    It returns the confidence that was worked out last: what is said of most tokens, and NumPy takes longer to look it up.

    Arguments are the five arrays, `ROW` of the step, its query's token index, what is to be done, the claim of the word to be
    scored (its number among `CLAIM_KINDS`, or -1), the entropy behind that word (NaN where it is not known), then of a new
    word its log-probability, entropy and margin, five candidates' log-probabilities, and how often it was said before.
    """
    real, index = types.float64, types.int64
    own = [index[::1], types.float32[:, ::1], real[::1], types.float32[::1], real[::1]]
    row = [types.Array(from_dtype(np.dtype(kind)), 3, "C", readonly=True) for kind in ROW_TYPES]
    signature = real(*own, *row, index, index, index, real, *[real] * 8, index)
    try:
        return njit(signature, cache=True, error_model="numpy")(_advance)  # type: ignore[no-any-return]
    except RuntimeError:  # neither the package's folder nor the user's cache can be written to
        return njit(signature, error_model="numpy")(_advance)  # type: ignore[no-any-return]


def _advance(
    ints: Any, standard: Any, weights: Any, x: Any, state: Any,
    reals: Any, indices: Any, mass: Any, retained: Any,
    position: int, do: int, kind: int, following: float, logprob: float, doubt: float, margin: float,
    top1: float, top2: float, top3: float, top4: float, top5: float, repetition: int,
) -> Any:  # fmt: skip
    if do & READ:
        if not _fits(ints, reals, indices, mass, retained):
            raise ValueError("expected a row of the shape that the probe set was fitted for; check the set against the model")
        _divide_by(ints, state, retained, position)
        _gather(ints, x, state, OF_REALS, reals.reshape(-1))
        _gather(ints, x, state, OF_MASS, mass.reshape(-1))
        _gather(ints, x, state, OF_RETAINED, retained.reshape(-1))
        _across(ints, x, state, mass, indices[ARGMAX])
    if do & SCORE:
        _score(ints, standard, weights, x, state, kind, following, do & COMMIT)
    if do & SHIFT:
        x[: ints[COLUMNS]] = x[ints[COLUMNS] : 2 * ints[COLUMNS]]
    if do & WORD:
        _add_word(ints, x, state, logprob, doubt, margin, top1, top2, top3, top4, top5, repetition)
    return state[CONFIDENCE]
