"""Differences of AUROC: paired under a bootstrap of groups, within deciles of another score, and over several seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import t as student

from introspect_probes.metrics import ClusterBootstrap, interval

Floats = NDArray[np.floating]
DECILES = 10
MIN_OF_EACH = 10
"""A decile counts with this many right and wrong answers."""
_NO_VARIANCE = 1e-12
"""Stands for a variance of zero, by which nothing can be divided."""


class Contrast:
    """Compares scores of the same rows; the same draws of groups for all, so that differences are paired.

    Args:
        scores: by name, higher for label 1.
        labels: 0 or 1.
        groups: drawn whole.
        deciles_of: name of the score whose deciles AUROC is also taken within.
    """

    def __init__(
        self, scores: Mapping[str, Floats], labels: NDArray[np.int8], groups: NDArray[np.str_], deciles_of: str | None = None
    ) -> None:
        bootstrap = ClusterBootstrap(groups)
        self._draws = {name: bootstrap.auroc(value, labels) for name, value in scores.items()}
        self.deciles = 0
        self._within: dict[str, tuple[float, NDArray[np.float64]]] = {}
        if deciles_of is not None:
            strata = decile_rows(scores[deciles_of], labels)
            self.deciles = len(strata)
            rows = np.concatenate(strata) if strata else np.zeros(0, dtype=np.int64)
            names = np.repeat([f"{i}" for i in range(len(strata))], [len(s) for s in strata]).astype(np.str_)
            inside = ClusterBootstrap(groups[rows]) if strata else None
            if inside is not None:
                self._within = {name: inside.auroc(value[rows], labels[rows], names) for name, value in scores.items()}

    def auroc(self, name: str) -> list[float | None]:
        """AUROC of a score with its interval."""
        return interval(*self._draws[name]).as_list()

    def value(self, name: str) -> float:
        """AUROC of a score."""
        return self._draws[name][0]

    def delta(self, name: str, reference: str) -> dict[str, Any]:
        """AUROC of one score minus that of another: `difference` (value, low, high) and its `standard_error`."""
        return difference(self._draws[name], self._draws[reference])

    def delta_within(self, name: str, reference: str) -> dict[str, Any] | None:
        """The same of the mean AUROC within deciles; `None` where no decile holds enough of each label."""
        return difference(self._within[name], self._within[reference]) if self._within else None


def decile_rows(score: Floats, labels: NDArray[np.int8]) -> list[NDArray[np.int64]]:
    """Rows of each decile of a score that holds at least `MIN_OF_EACH` of both labels."""
    parts = np.array_split(np.argsort(score, kind="stable"), DECILES)
    return [rows for rows in parts if min(labels[rows].sum(), (1 - labels[rows]).sum()) >= MIN_OF_EACH]


def difference(ours: tuple[float, NDArray[np.float64]], theirs: tuple[float, NDArray[np.float64]]) -> dict[str, Any]:
    """What one AUROC with its bootstrap draws is above another: `difference` (value, low, high) and its `standard_error`."""
    draws = ours[1] - theirs[1]
    return {"difference": interval(ours[0] - theirs[0], draws).as_list(), "standard_error": round(float(np.nanstd(draws, ddof=1)), 5)}


def permuted_within(rng: np.random.Generator, cells: NDArray[np.integer]) -> NDArray[np.int64]:
    """An order of rows that exchanges only rows of one cell."""
    order = np.arange(len(cells))
    for cell in np.unique(cells):
        rows = np.flatnonzero(cells == cell)
        order[rows] = rng.permutation(rows)
    return order


def random_effects(values: Sequence[float], standard_errors: Sequence[float]) -> dict[str, float]:
    """Mean over seeds whose true values may differ.

    The variance between seeds is that of Paule and Mandel (1982, Journal of
    Research of the National Bureau of Standards 87): no seed outweighs all
    others, though its own standard error be zero, as where the added set was
    left out. The interval is Hartung and Knapp's (2001, Statistics in Medicine
    20), for few seeds.

    Returns:
        `mean`, `low` and `high` (95 %), and `between`, the standard deviation of true values between seeds.

    Raises:
        ValueError: fewer than two seeds.
    """
    if len(values) < 2 or len(values) != len(standard_errors):
        raise ValueError(f"random effects take two seeds or more with a standard error each, got {len(values)} and {len(standard_errors)}")
    y, variance = np.asarray(values, dtype=np.float64), np.asarray(standard_errors, dtype=np.float64) ** 2
    degrees = len(y) - 1

    def excess(between: float) -> float:
        weight = 1 / (variance + between)
        return float((weight * (y - np.average(y, weights=weight)) ** 2).sum() - degrees)

    between = brentq(excess, _NO_VARIANCE, float(np.ptp(y) ** 2) + _NO_VARIANCE) if excess(_NO_VARIANCE) > 0 else 0.0
    weight = 1 / (variance + max(between, _NO_VARIANCE))
    mean = float(np.average(y, weights=weight))
    spread = max(1.0, float((weight * (y - mean) ** 2).sum()) / degrees)
    error = float(student.ppf(0.975, degrees) * np.sqrt(spread / weight.sum()))
    return {"mean": mean, "low": mean - error, "high": mean + error, "between": float(np.sqrt(between))}
