"""Scoring a batch of tokens at once, reading only those statistics that a probe gives a weight to.

l1 leaves a probe of a 28-layer, 28-head model with some hundreds of its 27,552 head features, so that gathering
these is far quicker than spelling all of them out. Values are those of `features.head_features`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from introspect.types import HeadRow, PromptInfo
from introspect_kernels import Segment
from introspect_probes.claim_probe import ClaimProbe, budget_features
from introspect_probes.features import LAYER_STATISTICS, Shape, head_feature_names, kind_features, layer_statistic, parse_head_feature
from introspect_probes.linear import BudgetedProbe, LinearProbe
from introspect_probes.probe_set import ProbeSet

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class TokenBatch:
    """One token of each of several answers, with both of its rows.

    Attributes:
        producing: rows that predicted the tokens, every array with a leading `[batch]`; see `HeadRow.joined`.
        reading: rows that read them.
        positions: token index of each producing query, `[batch]`.
        logits: `features.logit_features` of each, `[batch, logits]`.
        place: `features.place_features` of each, `[batch, place]`.
        kinds: what each token claims.
        prompts: whose answers they are.
    """

    producing: HeadRow
    reading: HeadRow
    positions: NDArray[np.int64]
    logits: NDArray[np.float32]
    place: NDArray[np.float32]
    kinds: Sequence[str]
    prompts: Sequence[PromptInfo]


@dataclass(frozen=True)
class BatchSignals:
    """What a batch says.

    Attributes:
        risk: P(the claim is false), `[batch]`.
        strategy: probabilities in the order of the probe's states, `[batch, states]`; `None` without a strategy probe.
        confidence_heads: what each token adds to the sums that confidence is made of, `[batch, columns]`.
    """

    risk: Floats | None
    strategy: Floats | None
    confidence_heads: NDArray[np.float32]


class BatchScorer:
    """Scores batches with a probe set.

    Args:
        probes: the probe set.
    """

    def __init__(self, probes: ProbeSet) -> None:
        self.probes = probes
        count = len(head_feature_names(probes.shape))
        named = {"confidence": [probes.confidence.whole, probes.confidence.reduced]}
        if probes.claims is not None:
            named["internal"] = [probes.claims.internal.whole, probes.claims.internal.reduced]
        if probes.strategy is not None:
            named["strategy"] = [probes.strategy.probe]
        used = {
            name: np.flatnonzero(np.any(np.concatenate([probe.weight[:, :count] for probe in each]) != 0, axis=0))
            for name, each in named.items()
        }
        every = np.unique(np.concatenate(list(used.values())))
        self._reader = ColumnReader(probes.shape, every)
        self._places = {name: np.searchsorted(every, columns) for name, columns in used.items()}
        self._probes = {
            name: [narrowed(probe, np.concatenate([used[name], np.arange(count, probe.weight.shape[1])])) for probe in each]
            for name, each in named.items()
        }

    def score(self, batch: TokenBatch) -> BatchSignals:
        """Final signals of a batch of tokens."""
        read = self._reader.read(batch)
        strategy = None
        if self.probes.strategy is not None:
            probe = replace(self.probes.strategy, probe=self._probes["strategy"][0])
            strategy = probe.probabilities(read[:, self._places["strategy"]])
        risk = None if self.probes.claims is None else self._risk(self.probes.claims, batch, read[:, self._places["internal"]])
        return BatchSignals(risk, strategy, read[:, self._places["confidence"]])

    def _risk(self, claims: ClaimProbe, batch: TokenBatch, heads: NDArray[np.float32]) -> Floats:
        kinds = np.stack([kind_features(kind) for kind in batch.kinds])
        budget = np.stack([budget_features(p) for p in batch.prompts])
        reduced = budget[:, 1] > 0
        internal = BudgetedProbe(*self._probes["internal"]).logits(np.concatenate([heads, batch.logits, kinds], axis=1), reduced)
        prior = claims.prior.logits(np.concatenate([batch.place, kinds, budget], axis=1), reduced)
        return claims.calibration(internal + prior, reduced)

    def confidence(
        self, sums: NDArray[np.floating], counts: NDArray[np.integer], tails: NDArray[np.floating], reduced: NDArray[np.bool_]
    ) -> Floats:
        """P(the answer is right), before the domain's factor.

        Args:
            sums: of `confidence_heads` over each answer's tokens, `[batch, columns]`.
            counts: its tokens, `[batch]`.
            tails: `probe_set.answer_tail` of each, `[batch, tail]`.
            reduced: whether its cache was reduced.
        """
        features = np.concatenate([sums / np.asarray(counts)[:, None], tails], axis=1)
        return self.probes.confidence_calibration(BudgetedProbe(*self._probes["confidence"]).logits(features, reduced), reduced)


def narrowed(probe: LinearProbe, columns: NDArray[np.int64]) -> LinearProbe:
    """The probe on some of its columns; the others must have no weight."""
    return LinearProbe(probe.mean[columns], probe.scale[columns], probe.weight[:, columns], probe.bias)


class ColumnReader:
    """Reads chosen columns of `features.head_features` for a batch.

    Args:
        shape: of the model.
        columns: which, ascending.
    """

    def __init__(self, shape: Shape, columns: NDArray[np.int64]) -> None:
        names = head_feature_names(shape)
        self.shape, self.count = shape, len(columns)
        groups: dict[tuple[str, str], tuple[list[int], list[int]]] = {}
        for out, column in enumerate(columns):
            source, statistic, flat = parse_head_feature(names[column], shape)
            places, flats = groups.setdefault((source, statistic), ([], []))
            places.append(out)
            flats.append(flat)
        self._groups = [(*key, np.array(places), np.array(flats)) for key, (places, flats) in groups.items()]

    def read(self, batch: TokenBatch) -> NDArray[np.float32]:
        """The columns' values, `[batch, columns]`."""
        result = np.empty((len(batch.positions), self.count), dtype=np.float32)
        rows = {"producing": (batch.producing, batch.positions), "reading": (batch.reading, batch.positions + 1)}
        retention = np.stack([p.retention for p in batch.prompts])
        for source, statistic, places, flats in self._groups:
            if source == "budget":
                values = self._budget(batch, retention, statistic, flats)
            elif statistic in LAYER_STATISTICS:
                row = rows[source][0]
                values = layer_statistic(statistic, row.mass[..., Segment.IMAGE], row.argmax_position)[:, flats]
            else:
                values = self._statistic(*rows[source], statistic, flats)
            result[:, places] = values
        return result

    def _statistic(self, row: HeadRow, positions: NDArray[np.int64], name: str, flats: NDArray[np.int64]) -> NDArray[np.floating]:
        size = len(positions)
        if name.startswith("mass_"):
            return np.asarray(row.mass.reshape(size, -1, row.mass.shape[-1])[:, flats, Segment[name.removeprefix("mass_").upper()]])
        values = getattr(row, name).reshape(size, -1)[:, flats]
        if name in ("entropy", "image_entropy"):
            values = values / np.log(np.maximum(self._retained(row, name == "image_entropy", flats), 2))
        elif name == "mean_distance":
            values = values / np.maximum(1, positions)[:, None]
        elif name == "windowed_distance":
            values = values / 10.0
        return np.where(np.isnan(values) | np.isneginf(values), 0.0, values)

    def _retained(self, row: HeadRow, image_only: bool, flats: NDArray[np.int64]) -> NDArray[np.integer]:
        """Entries that each chosen head sees, or those of the image."""
        layer, head = flats // self.shape.heads, flats % self.shape.heads
        kept = row.retained[:, layer, head // (self.shape.heads // self.shape.kv_heads)]
        return np.asarray(kept[..., Segment.IMAGE] if image_only else kept.sum(-1))

    def _budget(self, batch: TokenBatch, retention: NDArray[np.floating], statistic: str, flats: NDArray[np.int64]) -> NDArray[np.floating]:
        what, _, segment = statistic.partition("_")
        index = Segment[segment.upper()]
        layer, head = flats // self.shape.kv_heads, flats % self.shape.kv_heads
        if what == "retention":
            values = retention[:, layer, head, index]
            return np.where(np.isnan(values), 1.0, values)
        logical = np.array([max(int(p.logical[index]), 1) for p in batch.prompts])
        return np.asarray(batch.producing.retained[:, layer, head, index] / logical[:, None])
