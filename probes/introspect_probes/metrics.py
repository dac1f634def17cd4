"""Metrics with intervals: AUROC under cluster bootstrap, and the usual scores of probabilities."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, brier_score_loss, log_loss

RESAMPLES = 1000
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

    def as_list(self) -> list[float]:
        """Value, low and high, rounded."""
        return [round(x, 4) for x in (self.value, self.low, self.high)]


class ClusterBootstrap:
    """Resamples groups with replacement; the same draws for every score, so that differences are paired.

    Args:
        groups: group of each row.
        resamples: how many draws.
        seed: of the draws.
    """

    def __init__(self, groups: NDArray[np.str_], resamples: int = RESAMPLES, seed: int = 0) -> None:
        names, self._index = np.unique(groups, return_inverse=True)
        rng = np.random.default_rng(seed)
        self._counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)

    def auroc(self, scores: Floats, labels: Labels, strata: NDArray[np.str_] | None = None) -> tuple[float, NDArray[np.float64]]:
        """AUROC and its bootstrap draws; with `strata`, the unweighted mean over strata that hold both classes."""
        parts = [np.arange(len(labels))] if strata is None else [np.flatnonzero(strata == name) for name in np.unique(strata)]
        parts = [rows for rows in parts if 0 < labels[rows].sum() < len(rows)]
        if not parts:
            return float("nan"), np.full(len(self._counts), np.nan)
        value = float(np.mean([weighted_auroc(scores[rows], labels[rows], np.ones(len(rows))) for rows in parts]))
        draws = [
            np.nanmean([weighted_auroc(scores[rows], labels[rows], counts[self._index[rows]].astype(float)) for rows in parts])
            for counts in self._counts
        ]
        return value, np.array(draws)


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


def probability_metrics(probabilities: Floats, labels: Labels) -> dict[str, float]:
    """Base rate, average precision, TPR at 1 and 5 % FPR, Brier score, log loss and calibration error."""
    clipped = np.clip(probabilities, 1e-6, 1 - 1e-6)
    negatives = np.sort(probabilities[labels == 0])[::-1]
    positives = probabilities[labels == 1]

    def recall(rate: float) -> float:
        threshold = negatives[min(len(negatives) - 1, int(rate * len(negatives)))]
        return float((positives > threshold).mean())

    return {
        "count": len(labels),
        "base_rate": round(float(labels.mean()), 4),
        "average_precision": round(float(average_precision_score(labels, probabilities)), 4),
        "tpr_at_1_fpr": round(recall(0.01), 4),
        "tpr_at_5_fpr": round(recall(0.05), 4),
        "brier": round(float(brier_score_loss(labels, clipped)), 4),
        "log_loss": round(float(log_loss(labels, clipped)), 4),
        "ece": round(expected_calibration_error(clipped, labels), 4),
    }
