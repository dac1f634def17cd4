"""A probe set cut down to what it gives a weight to, laid out for `compiled.py`, which scores token by token.

l1 leaves a probe some hundreds of its head features. A token's are those of the row that predicted it, of the row
that read it, and of what the budget kept of the prompt; so each row is read once, whether it predicts or reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from introspect.types import PromptInfo
from introspect_kernels import NUM_SEGMENTS, REALS, Segment
from introspect_probes import compiled as at
from introspect_probes.claim_probe import budget_features
from introspect_probes.errors import ProbesError
from introspect_probes.features import LAYER_STATISTICS, LOGITS, PLACE, Shape, head_feature_names, parse_head_feature
from introspect_probes.linear import LinearProbe
from introspect_probes.worlds.claims import CLAIM_KINDS

if TYPE_CHECKING:
    from introspect_probes.probe_set import ProbeSet

Ints = NDArray[np.int64]
_RISKS, _BUDGET = 6, 2


class Answer(NamedTuple):
    """The numbers of one answer, which `compiled.py` reads and writes.

    Attributes:
        x: `float32`, what is known of a token.
        state: `float64`, what runs on from token to token, and what was said last.
    """

    x: NDArray[np.float32]
    state: NDArray[np.float64]


class _Column(NamedTuple):
    """A number of a row: in which block, where in it (of a layer's statistic, which layer), and by what it is divided."""

    block: int
    offset: int
    divisor: int


class _Output(NamedTuple):
    """One output of a probe, as far as it gives weights: where its features are, and as in `LinearProbe`."""

    places: Ints
    mean: NDArray[np.float32]
    scale: NDArray[np.float32]
    weight: NDArray[np.float32]
    bias: float


_NONE = np.zeros(0, np.float32)
_NOTHING = _Output(np.zeros(0, np.int64), _NONE, _NONE, _NONE, 0.0)


class NarrowProbes:
    """Tables of a probe set, and the numbers of an answer that begins.

    What is known of a token is one vector: columns of the row that predicted it, the same of the row that read it, what
    the budget kept of the prefill's attention, means of confidence's head features over the answer, and what is not of
    the heads. Each output of a probe has an entry for every feature that it gives a weight to.

    Args:
        probes: the probe set.
        is_reduced: for answers of which kind of cache.

    Attributes:
        tables: what `compiled.compiled()` takes first: `ints`, `standard`, `weights`.
        no_row: what it takes for the row where there is none.
        states: where in `Answer.state` the strategy's probabilities are.
    """

    def __init__(self, probes: ProbeSet, *, is_reduced: bool) -> None:
        self._probes, shape = probes, probes.shape
        self._is_reduced = is_reduced
        names, kinds = head_feature_names(shape), len(CLAIM_KINDS)
        confidence, strategy = probes.confidence.chosen(is_reduced=is_reduced), probes.strategy
        internal = probes.claims.internal.chosen(is_reduced=is_reduced) if probes.claims else None
        prior = probes.claims.prior.chosen(is_reduced=is_reduced) if probes.claims else None
        on_heads = [confidence, *([internal] if internal else []), *([strategy.probe] if strategy else [])]
        used = np.flatnonzero(np.any([np.any(probe.weight[:, : len(names)] != 0, axis=0) for probe in on_heads], axis=0))
        parsed = {column: parse_head_feature(names[column], shape) for column in used.tolist()}
        # What the budget kept at this row is read with the row; what it kept of the prefill's attention belongs to the prompt.
        kept = sorted({(what, flat) for _, what, flat in parsed.values() if what.startswith("retention_")})
        self._kept = [flat for _, flat in kept], [Segment[what.removeprefix("retention_").upper()] for what, _ in kept]
        columns = sorted({_column(what, flat, shape) for _, what, flat in parsed.values() if not what.startswith("retention_")})
        summed = np.flatnonzero(confidence.weight[0, : len(names)])
        states = len(strategy.states) if strategy else 0
        x = _blocks(2 * len(columns), len(kept), len(summed), len(LOGITS), len(PLACE), kinds, kinds, _RISKS, _BUDGET)
        self._x, (_, kept_at, means, logits, place, kind, counts, risks, budget) = x, x
        state = _blocks(at.NUMBERS, kinds, states, len(summed), at.BY_HEAD + 2 * shape.layers * shape.kv_heads, shape.heads)
        self._state, self.states = state, slice(state[2].start, state[2].stop)
        heads, averaged = np.zeros(len(names), np.int64), np.zeros(len(names), np.int64)
        number = {column: count for count, column in enumerate(columns)}
        for feature, (source, what, flat) in parsed.items():
            if what.startswith("retention_"):
                heads[feature] = kept_at[kept.index((what, flat))]
            else:
                heads[feature] = number[_column(what, flat, shape)] + (len(columns) if source == "reading" else 0)
        averaged[summed] = means
        outputs = [_output(confidence, 0, averaged, logits, counts, risks, budget)]
        outputs.append(_output(internal, 0, heads, logits, kind) if internal else _NOTHING)
        outputs.append(_output(prior, 0, place, kind, budget) if prior else _NOTHING)
        outputs += [_output(strategy.probe, number, heads) for number in range(states)] if strategy else []
        sizes = (shape.layers, shape.heads, shape.kv_heads, len(columns), kinds, len(summed), int(internal is not None), states)
        lists = (
            np.searchsorted([column.block for column in columns], np.arange(at.CONSENSUS + 2)),
            [column.offset for column in columns],
            [column.divisor for column in columns],
            np.cumsum([0, *(len(output.places) for output in outputs)]),
            np.concatenate([output.places for output in outputs]),
            heads[summed],
        )
        begins = [block.start for block in (means, logits, place, kind, counts, risks, *state[1:])]
        self.tables = (
            _packed(sizes, lists, begins),
            np.stack([np.concatenate([o.mean for o in outputs]), np.concatenate([o.scale for o in outputs])]),
            np.concatenate([*(o.weight for o in outputs), [o.bias for o in outputs]]).astype(np.float64),
        )
        self.no_row = tuple(np.zeros((1, 1, 1), dtype) for dtype in at.ROW_TYPES)
        self._deviates = confidence.mean[summed], confidence.scale[summed]

    def answer(self, prompt: PromptInfo, in_domain: float | None) -> Answer:
        """The numbers of an answer that begins; `in_domain` is a factor of its confidence."""
        probes, reduced = self._probes, self._is_reduced
        x, state = np.zeros(self._x[-1].stop, np.float32), np.zeros(self._state[-1].stop)
        kept = prompt.retention.reshape(-1, NUM_SEGMENTS)[self._kept]
        x[self._x[1].start : self._x[1].stop] = np.where(np.isnan(kept), 1.0, kept)
        x[self._x[-1].start :] = budget_features(prompt)
        calibration = probes.confidence_calibration.chosen(is_reduced=reduced)
        state[[at.CONFIDENCE_A, at.CONFIDENCE_B]] = calibration.a, calibration.b
        if probes.claims is not None:
            calibration = probes.claims.calibration.chosen(is_reduced=reduced)
            state[[at.RISK_A, at.RISK_B]] = calibration.a, calibration.b
        state[at.TEMPERATURE] = probes.strategy.temperature if probes.strategy is not None else 1.0
        state[at.FACTOR] = 1.0 if in_domain is None else in_domain
        state[at.LOWEST], state[at.HIGHEST] = np.inf, -np.inf
        state[at.LOGICAL : at.LOGICAL + NUM_SEGMENTS] = np.maximum(prompt.logical, 1)
        return Answer(x, state)

    def distance(self, answer: Answer) -> float | None:
        """How far an answer's mean head features that confidence reads are from those of the fit: root mean square, in deviations."""
        mean, scale = self._deviates
        if not answer.state[at.WORDS] or not len(mean):
            return None
        deviations = np.clip((answer.x[self._x[2].start : self._x[2].stop] - mean) / scale, -8, 8)
        return float(np.sqrt(np.mean(deviations**2)))


def _column(name: str, flat: int, shape: Shape) -> _Column:
    """Where a statistic is, as `features.parse_head_feature` names it."""
    if name in LAYER_STATISTICS:
        return _Column(at.GINI + LAYER_STATISTICS.index(name), flat, at.WHOLE)
    field, _, segment = name.partition("_")
    if field == "mass":
        return _Column(at.OF_MASS, flat * NUM_SEGMENTS + Segment[segment.upper()], at.WHOLE)
    if field == "retained":
        number = Segment[segment.upper()]
        return _Column(at.OF_RETAINED, flat * NUM_SEGMENTS + number, at.BY_SEGMENT + number)
    divisor = {"mean_distance": at.POSITION, "windowed_distance": at.WINDOW}.get(name, at.WHOLE)
    if name in ("entropy", "image_entropy"):
        layer, head = divmod(flat, shape.heads)
        kv_head = layer * shape.kv_heads + head // (shape.heads // shape.kv_heads)
        divisor = at.BY_HEAD + 2 * kv_head + (name == "image_entropy")
    return _Column(at.OF_REALS, REALS.index(name) * shape.layers * shape.heads + flat, divisor)


def _blocks(*sizes: int) -> list[range]:
    """Places of what lies one behind another."""
    return [range(first, last) for first, last in pairwise(accumulate(sizes, initial=0))]


def _output(probe: LinearProbe, number: int, *places: Sequence[int] | Ints) -> _Output:
    """What output `number` of a probe gives weights to; `places` are those of all of its features."""
    weighed = np.flatnonzero(probe.weight[number])
    where = np.concatenate([np.asarray(block, dtype=np.int64) for block in places])
    if probe.weight.shape[1:] != where.shape or probe.mean.shape != where.shape or probe.scale.shape != where.shape:
        raise ProbesError(f"expected a probe on {len(where)} features, got {probe.weight.shape[1:]}; make the probe set again")
    return _Output(where[weighed], probe.mean[weighed], probe.scale[weighed], probe.weight[number, weighed], float(probe.bias[number]))


def _packed(sizes: Sequence[int], lists: Sequence[Any], begins: Sequence[int]) -> Ints:
    """All of the tables' whole numbers: sizes, where each list begins, where blocks begin, then the lists."""
    starts = accumulate((len(each) for each in lists[:-1]), initial=len(sizes) + len(lists) + len(begins))
    return np.concatenate([sizes, list(starts), begins, *lists]).astype(np.int64)
