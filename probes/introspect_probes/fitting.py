"""Fitting linear probes with mature libraries; what comes out is arrays."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.calibration import CalibratedClassifierCV
from sklearn.exceptions import ConvergenceWarning
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.preprocessing import StandardScaler

from introspect_probes.errors import FitError
from introspect_probes.linear import BudgetedPlatt, BudgetedProbe, LinearProbe, Platt, sigmoid

Floats = NDArray[np.floating]
STRENGTHS = (0.01, 0.03, 0.1)
"""Candidate inverse penalties (scikit-learn's C) of the l1 search."""
SMALL, SMALL_STRENGTHS = 1000, (*STRENGTHS, 0.3, 1.0)
"""C weighs the sum of the losses: under this many rows the search goes on to weaker penalties."""
FOLDS = 3
OWN = 50
"""With this many rows of each label under the whole cache, these have a probe of their own."""


@dataclass(frozen=True)
class Strengths:
    """Inverse penalties that were chosen: of the probe on all rows, and of that on the whole cache's alone, where there is one."""

    every: float
    whole: float | None = None


def check_labels(labels: NDArray[np.int8], groups: NDArray[np.str_], what: str) -> None:
    """Make sure that a fit can be made.

    Raises:
        FitError: one class only, or too few groups to split.
    """
    if len(labels) == 0:
        raise FitError(f"{what}: no labelled rows; record cases that have answers, or label the answers")
    if len(np.unique(labels)) < 2:
        raise FitError(f"{what}: all {len(labels)} labels are {labels[0]}; record harder or easier cases so that both occur")
    if len(np.unique(groups)) < 2 * FOLDS:
        raise FitError(
            f"{what}: {len(np.unique(groups))} groups, at least {2 * FOLDS} are needed for grouped folds; record more pictures or questions"
        )


def fit_logistic(
    features: Floats,
    labels: NDArray[np.int8],
    groups: NDArray[np.str_],
    *,
    weights: Floats | None = None,
    strengths: Sequence[float] | None = None,
    what: str = "probe",
) -> tuple[LinearProbe, float]:
    """l1 logistic regression on standardised features, the penalty found by grouped cross-validation of the log loss.

    Args:
        features: `[rows, features]`.
        labels: 0 or 1, or class indices.
        groups: rows of one group stay in one fold.
        weights: of the rows, or equal.
        strengths: candidate inverse penalties; `STRENGTHS`, or `SMALL_STRENGTHS` for few rows, by default.
        what: what is fitted, for messages.

    Returns:
        The probe, and the inverse penalty that was chosen.

    Raises:
        FitError: labels or groups do not allow a fit, or features are not finite.
    """
    if not np.isfinite(features).all():
        row = int(np.flatnonzero(~np.isfinite(features).all(axis=1))[0])
        raise FitError(f"{what}: row {row} holds a feature that is not finite; record its trace again")
    check_labels(labels, groups, what)
    row_weights = np.ones(len(labels)) if weights is None else np.asarray(weights, dtype=np.float64)
    strengths = strengths or (STRENGTHS if len(labels) >= SMALL else SMALL_STRENGTHS)
    best, best_loss = strengths[0], np.inf
    if len(strengths) > 1:
        folds = list(StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0).split(features, labels, groups))
        for strength in strengths:
            losses = []
            for train, test in folds:
                probe = _fit(features[train], labels[train], row_weights[train], strength)
                losses.append(
                    log_loss(labels[test], _probabilities(probe, features[test]), sample_weight=row_weights[test], labels=np.unique(labels))
                )
            if np.mean(losses) < best_loss:
                best, best_loss = strength, float(np.mean(losses))
    return _fit(features, labels, row_weights, best), best


def fit_by_cache(
    features: Floats,
    labels: NDArray[np.int8],
    groups: NDArray[np.str_],
    reduced: NDArray[np.bool_],
    *,
    weights: Floats | None = None,
    strengths: Sequence[float] | None = None,
    what: str = "probe",
) -> tuple[BudgetedProbe, Strengths]:
    """`fit_logistic` for answers under reduced caches on all rows, and for those under the whole cache on their own rows.

    What was evicted makes other statistics tell, and of a whole cache nothing was. Rows of it alone are enough where
    there are `OWN` of each label; else, and where only one kind of cache was recorded, one probe is both.

    Args:
        features: `[rows, features]`.
        labels: 0 or 1.
        groups: rows of one group stay in one fold.
        reduced: whether each row's cache was reduced.
        weights: of the rows, or equal.
        strengths: as in `fit_logistic`.
        what: what is fitted, for messages.

    Raises:
        FitError: as `fit_logistic`.
    """
    every, strength = fit_logistic(features, labels, groups, weights=weights, strengths=strengths, what=what)
    own = ~reduced
    if not has_own(labels, groups, reduced):
        return BudgetedProbe.one(every), Strengths(strength)
    whole, own_strength = fit_logistic(
        features[own], labels[own], groups[own], weights=None if weights is None else weights[own], strengths=strengths, what=what
    )
    return BudgetedProbe(whole, every), Strengths(strength, own_strength)


def has_own(labels: NDArray[np.int8], groups: NDArray[np.str_], reduced: NDArray[np.bool_]) -> bool:
    """Whether rows under the whole cache, beside others, are enough for a probe of their own."""
    own = ~reduced
    counts = [int((labels[own] == value).sum()) for value in (0, 1)]
    return bool(reduced.any()) and min(counts) >= OWN and len(np.unique(groups[own])) >= 2 * FOLDS


def out_of_fold_by_cache(
    features: Floats,
    labels: NDArray[np.int8],
    groups: NDArray[np.str_],
    reduced: NDArray[np.bool_],
    strengths: Strengths,
    weights: Floats | None = None,
) -> NDArray[np.float64]:
    """`out_of_fold_logits` of what `fit_by_cache` fits."""
    result = out_of_fold_logits(features, labels, groups, strengths.every, weights)
    if strengths.whole is not None:
        own = ~reduced
        own_weights = None if weights is None else weights[own]
        result[own] = out_of_fold_logits(features[own], labels[own], groups[own], strengths.whole, own_weights)
    return result


def out_of_fold_logits(
    features: Floats, labels: NDArray[np.int8], groups: NDArray[np.str_], strength: float, weights: Floats | None = None
) -> NDArray[np.float64]:
    """Binary logits of each row from a probe that never saw its group."""
    row_weights = np.ones(len(labels)) if weights is None else np.asarray(weights, dtype=np.float64)
    result = np.zeros(len(labels))
    for train, test in StratifiedGroupKFold(FOLDS, shuffle=True, random_state=1).split(features, labels, groups):
        result[test] = _fit(features[train], labels[train], row_weights[train], strength).logits(features[test])[:, 0]
    return result


def fit_platt(logits: Floats, labels: NDArray[np.int8], what: str) -> Platt:
    """Sigmoid calibration of logits on rows that no probe was fitted on.

    Raises:
        FitError: one class only.
    """
    if len(np.unique(labels)) < 2:
        raise FitError(f"calibration of {what}: all {len(labels)} labels are the same; record more cases for calibration")
    identity = LogisticRegression()
    identity.classes_, identity.coef_, identity.intercept_ = np.array([0, 1]), np.array([[1.0]]), np.array([0.0])
    identity.n_features_in_ = 1
    calibrated = CalibratedClassifierCV(FrozenEstimator(identity), method="sigmoid").fit(np.asarray(logits)[:, None], labels)
    calibrator = calibrated.calibrated_classifiers_[0].calibrators[0]
    return Platt(float(calibrator.a_), float(calibrator.b_))


def fit_budgeted_platt(logits: Floats, labels: NDArray[np.int8], reduced: NDArray[np.bool_], what: str) -> BudgetedPlatt:
    """One sigmoid calibration for whole caches and one for reduced ones; one for both where only one kind was recorded.

    Raises:
        FitError: one class only.
    """
    if reduced.all() or not reduced.any():
        both = fit_platt(logits, labels, what)
        return BudgetedPlatt(both, both)
    whole = fit_platt(logits[~reduced], labels[~reduced], f"{what}, whole cache")
    return BudgetedPlatt(whole, fit_platt(logits[reduced], labels[reduced], f"{what}, reduced cache"))


def fit_temperature(logits: Floats, labels: NDArray[np.int8]) -> float:
    """The temperature that makes softmax(logits / T) fit the labels best."""
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    rows = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        return -float(log_softmax(logits / np.exp(log_temperature), axis=1)[rows, labels].mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-2.0, 3.0), method="bounded").x))


def class_thresholds(probabilities: Floats, labels: NDArray[np.int8], alpha: float) -> tuple[float, ...]:
    """Per class, the smallest probability that stays in its conformal set at coverage 1 - alpha.

    Split-conformal with the least-ambiguous-set score 1 - p, within each true class
    (class-conditional). A class with too few calibration rows is always kept.
    """
    thresholds = []
    for column in range(probabilities.shape[1]):
        own = np.sort(1 - probabilities[labels == column, column])
        rank = int(np.ceil((len(own) + 1) * (1 - alpha)))
        thresholds.append(float(1 - own[rank - 1]) if 0 < rank <= len(own) else 0.0)
    return tuple(thresholds)


def balancing_weights(cells: Sequence[object], labels: NDArray[np.int8], limit: float = 10.0) -> NDArray[np.float64]:
    """Weights under which both labels weigh alike within every cell (HaloProbe's balancing, arXiv 2604.06165)."""
    names = np.array([str(cell) for cell in cells])
    weights = np.ones(len(labels))
    for name in np.unique(names):
        inside = names == name
        for value in (0, 1):
            own = inside & (labels == value)
            if own.any():
                weights[own] = min(limit, 0.5 * inside.sum() / own.sum())
    return weights


def _fit(features: Floats, labels: NDArray[np.int8], weights: NDArray[np.float64], strength: float) -> LinearProbe:
    scaler = StandardScaler().fit(features)
    standard = np.clip(scaler.transform(features), -8, 8).astype(np.float64)
    binary = len(np.unique(labels)) == 2
    model = LogisticRegression(
        C=strength, l1_ratio=1.0, solver="liblinear" if binary else "saga", max_iter=300, tol=1e-3, random_state=0,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # at this tolerance the search's losses no longer change
        model.fit(standard, labels, sample_weight=weights)
    return LinearProbe(
        scaler.mean_.astype(np.float32),
        np.where(scaler.scale_ > 0, scaler.scale_, 1).astype(np.float32),
        model.coef_.astype(np.float32),
        model.intercept_.astype(np.float32),
    )


def _probabilities(probe: LinearProbe, features: Floats) -> NDArray[np.float64]:
    logits = probe.logits(features)
    if logits.shape[1] == 1:
        p = sigmoid(logits[:, 0])
        return np.stack([1 - p, p], axis=1)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))
