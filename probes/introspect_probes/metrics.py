"""Metrics with intervals: AUROC under cluster bootstrap, and the usual scores of probabilities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, brier_score_loss, log_loss

from introspect_probes.selective import augrc, aurc, prr

RESAMPLES = 1000
FEW_RESAMPLES = 200
"""Draws for metrics that are slow to compute."""
ECE_BINS = 15

Floats = NDArray[np.floating]
Labels = NDArray[np.integer]


def weighted_auroc(scores: Floats, labels: Labels, weights: Floats) -> float:
    """AUROC with row weights, ties counted half; NaN where a class has no weight."""
    order = np.argsort(scores, kind="stable")
    s, positive, negative = scores[order], (weights * labels)[order], (weights * (1 - labels))[order]
    starts = np.flatnonzero(np.r_[True, s[1:] != s[:-1]])
    p, n = np.add.reduceat(positive, starts), np.add.reduceat(negative, starts)
    if p.sum() == 0 or n.sum() == 0:
        return float("nan")
    below = np.cumsum(n) - n
    return float((p * (below + 0.5 * n)).sum() / (p.sum() * n.sum()))


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % percentile interval."""

    value: float
    low: float
    high: float

    def as_list(self) -> list[float | None]:
        """Value, low and high, rounded; `None` for what could not be had."""
        return [round(x, 4) if np.isfinite(x) else None for x in (self.value, self.low, self.high)]


class ClusterBootstrap:
    """Resamples groups with replacement; the same draws for every score, so that differences are paired.

    Args:
        groups: group of each row.
        resamples: how many draws; `RESAMPLES` by default.
        seed: of the draws.
        crossed: a second grouping of the rows that is drawn independently of the first (two-way, or pigeonhole, bootstrap:
            Owen 2007, arXiv 0712.1111); a row counts as often as both of its groups are drawn, multiplied.
    """

    def __init__(
        self, groups: NDArray[np.str_], resamples: int | None = None, seed: int = 0, crossed: NDArray[np.str_] | None = None
    ) -> None:
        rng = np.random.default_rng(seed)
        resamples = RESAMPLES if resamples is None else resamples
        self._ways = [_drawn(way, resamples, rng) for way in ([groups] if crossed is None else [groups, crossed])]
        self._rows, self._resamples = len(groups), resamples

    def weights(self, draw: int) -> NDArray[np.int64]:
        """How often each row counts in a draw."""
        result = np.ones(self._rows, dtype=np.int64)
        for index, counts in self._ways:
            result *= counts[draw][index]
        return result

    def auroc(self, scores: Floats, labels: Labels, strata: NDArray[np.str_] | None = None) -> tuple[float, NDArray[np.float64]]:
        """AUROC and its bootstrap draws; with `strata`, the unweighted mean over strata that hold both classes."""
        parts = [np.arange(len(labels))] if strata is None else [np.flatnonzero(strata == name) for name in np.unique(strata)]
        parts = [rows for rows in parts if 0 < labels[rows].sum() < len(rows)]
        if not parts:
            return float("nan"), np.full(self._resamples, np.nan)
        value = float(np.mean([weighted_auroc(scores[rows], labels[rows], np.ones(len(rows))) for rows in parts]))
        draws = []
        for draw in range(self._resamples):
            weights = self.weights(draw).astype(float)
            found = [weighted_auroc(scores[rows], labels[rows], weights[rows]) for rows in parts]
            draws.append(float(np.mean(kept)) if (kept := [v for v in found if np.isfinite(v)]) else float("nan"))
        return value, np.array(draws)

    def draws(self, metric: Callable[[NDArray[np.int64]], float], resamples: int = FEW_RESAMPLES) -> NDArray[np.float64]:
        """Bootstrap draws of any metric of rows, which takes the drawn rows' indices; NaN where it cannot be had."""
        rows = np.arange(self._rows)
        return np.array([metric(np.repeat(rows, self.weights(draw))) for draw in range(min(resamples, self._resamples))])


def _drawn(groups: NDArray[np.str_], resamples: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each row's group as a number, and how often each group is drawn, `[resamples, groups]`."""
    names, index = np.unique(groups, return_inverse=True)
    return index, rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)


def interval(value: float, draws: NDArray[np.float64]) -> Interval:
    """The 95 % percentile interval of bootstrap draws."""
    low, high = np.nanpercentile(draws, [2.5, 97.5]) if np.isfinite(draws).any() else (np.nan, np.nan)
    return Interval(value, float(low), float(high))


def expected_calibration_error(probabilities: Floats, labels: Labels, bins: int = ECE_BINS) -> float:
    """Debiased expected calibration error over bins of equal mass.

    The mean squared gap of each bin is reduced by the variance that a calibrated
    model would show there (Kumar et al., arXiv 1909.10155), then the root of the mean is taken.
    """
    order = np.argsort(probabilities, kind="stable")
    total = 0.0
    for rows in np.array_split(order, min(bins, len(order))):
        if len(rows) < 2:
            continue
        rate = labels[rows].mean()
        gap = (rate - probabilities[rows].mean()) ** 2 - rate * (1 - rate) / (len(rows) - 1)
        total += len(rows) / len(order) * gap
    return float(np.sqrt(max(0.0, total)))


def reliability(probabilities: Floats, labels: Labels, bins: int = ECE_BINS) -> list[dict[str, float]]:
    """Bins of equal mass: mean probability, share of ones, and how many."""
    parts = np.array_split(np.argsort(probabilities, kind="stable"), min(bins, len(labels)))
    return [
        {
            "probability": round(float(probabilities[rows].mean()), 4),
            "rate": round(float(labels[rows].mean()), 4),
            "count": len(rows),
        }
        for rows in parts
    ]


def recall_at(scores: Floats, labels: Labels, rate: float) -> float:
    """Share of the positives above the threshold that lets through at most `rate` of the negatives (TPR at that FPR)."""
    negatives, positives = np.sort(scores[labels == 0])[::-1], scores[labels == 1]
    if not len(negatives) or not len(positives):
        return float("nan")
    threshold = negatives[min(len(negatives) - 1, int(rate * len(negatives)))]
    return float((positives > threshold).mean())


PROBABILITY_METRICS: dict[str, Callable[[Floats, Labels], float]] = {
    "average_precision": lambda p, y: float(average_precision_score(y, p)) if y.any() else float("nan"),
    "tpr_at_1_fpr": lambda p, y: recall_at(p, y, 0.01),
    "tpr_at_5_fpr": lambda p, y: recall_at(p, y, 0.05),
    "brier": lambda p, y: float(brier_score_loss(y, p)),
    "log_loss": lambda p, y: float(log_loss(y, p, labels=[0, 1])),
    "ece": lambda p, y: expected_calibration_error(p, y),
}
SELECTIVE_METRICS: dict[str, Callable[[Floats, Labels], float]] = {"aurc": aurc, "augrc": augrc, "prr": prr}


def probability_metrics(
    probabilities: Floats, labels: Labels, groups: NDArray[np.str_] | None = None, *, selective: bool = False
) -> dict[str, Any]:
    """What a probability is worth: average precision beside the base rate, TPR at 1 and 5 % FPR, Brier, log loss, debiased ECE.

    Args:
        probabilities: of label 1.
        labels: 0 or 1.
        groups: with them, `intervals` holds value, low and high of every metric, from a bootstrap of whole groups.
        selective: also AURC, AUGRC and PRR; label 1 is then "right".
    """
    clipped = np.clip(np.asarray(probabilities, dtype=np.float64), 1e-6, 1 - 1e-6)
    metrics = PROBABILITY_METRICS | (SELECTIVE_METRICS if selective else {})
    result: dict[str, Any] = {"count": len(labels), "base_rate": round(float(labels.mean()), 4)}
    values = {name: metric(clipped, labels) for name, metric in metrics.items()}
    result |= {name: round(value, 4) for name, value in values.items() if np.isfinite(value)}
    if groups is not None:
        bootstrap = ClusterBootstrap(groups)
        for name, metric in metrics.items():
            drawn = bootstrap.draws(_of_rows(metric, clipped, labels))
            if np.isfinite(values[name]) and np.isfinite(drawn).any():
                result.setdefault("intervals", {})[name] = interval(values[name], drawn).as_list()
    return result


def _of_rows(metric: Callable[[Floats, Labels], float], probabilities: Floats, labels: Labels) -> Callable[[NDArray[np.int64]], float]:
    return lambda rows: metric(probabilities[rows], labels[rows])
