"""Nested penalties: what a block of features adds to others, each with a penalty of its own.

One l1 penalty for all blocks lets a block of hundreds of columns crowd out a good one of ten, or the other way round,
so that a difference between L+H and L+H+S says as much about the penalty as about S. Here each added block is scaled
by a factor of its own, which divides its penalty; among the factors is 0, which leaves the block out, so that the
smaller model is one of the larger one's candidates. All are chosen by grouped cross-validation of the fit part.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedGroupKFold

from introspect_probes.fitting import check_labels

Floats = NDArray[np.floating]
STRENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Candidate inverse penalties of the whole (scikit-learn's C)."""
FACTORS = (0.0, 0.3, 1.0, 3.0)
"""Candidate factors of the added block; 0 leaves it out."""
FOLDS = 3


@dataclass(frozen=True)
class Choice:
    """Penalties: the inverse strength of the whole, and each block's factor."""

    strength: float
    factors: tuple[float, ...]


def standardised(fit: Floats, *others: Floats) -> list[NDArray[np.float64]]:
    """Columns of `fit` and of the others by the mean and deviation of `fit`, clipped at 8; constant ones left out.

    Returns:
        The matrices in the order given.
    """
    mean, scale = fit.mean(0, dtype=np.float64), fit.std(0, dtype=np.float64)
    varies = scale > 1e-8
    return [np.clip((matrix[:, varies] - mean[varies]) / scale[varies], -8, 8) for matrix in (fit, *others)]


def choose(
    blocks: Sequence[Floats], labels: NDArray[np.int8], groups: NDArray[np.str_], base: Choice | None = None, seed: int = 0
) -> Choice:
    """Penalties for standardised blocks, the last of which is added to those that `base` was chosen for.

    Args:
        blocks: `[rows, ·]` each.
        labels: 0 or 1.
        groups: rows of one group stay in one fold.
        base: what was chosen for all blocks but the last; `None` for a single block.
        seed: of the folds.

    Raises:
        FitError: labels or groups do not allow a fit.
    """
    check_labels(labels, groups, "nested penalties")
    folds = list(StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed).split(blocks[0], labels, groups))
    before = base.factors if base is not None else ()
    best, best_loss = Choice(STRENGTHS[0], (*before, 1.0)), np.inf
    for factor in FACTORS if base is not None else (1.0,):
        matrix = weighted(blocks, (*before, factor))
        for strength in STRENGTHS if base is None else nearby(base.strength, factor):
            probabilities = np.empty(len(labels))
            for train, test in folds:
                probabilities[test] = fit(matrix[train], labels[train], strength).predict_proba(matrix[test])[:, 1]
            loss = float(log_loss(labels, probabilities))
            if loss < best_loss:
                best, best_loss = Choice(strength, (*before, factor)), loss
    return best


def nearby(strength: float, factor: float) -> tuple[float, ...]:
    """The base's strength and its neighbours; the base's alone where the added block is left out, which is the base again."""
    place = STRENGTHS.index(strength)
    return (strength,) if factor == 0 else STRENGTHS[max(0, place - 1) : place + 2]


def weighted(blocks: Sequence[Floats], factors: Sequence[float]) -> NDArray[np.float64]:
    """The blocks side by side, each times its factor; those of factor 0 left out."""
    return np.concatenate([factor * block for block, factor in zip(blocks, factors, strict=True) if factor > 0], axis=1)


def fit(matrix: NDArray[np.float64], labels: NDArray[np.int8], strength: float) -> LogisticRegression:
    """l1 logistic regression."""
    model = LogisticRegression(C=strength, l1_ratio=1.0, solver="liblinear", max_iter=200, tol=1e-3, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # at this tolerance the search's losses no longer change
        return model.fit(matrix, labels)


def scores(choice: Choice, blocks: Sequence[Floats], labels: NDArray[np.int8], fresh: Sequence[Floats]) -> NDArray[np.float64]:
    """Logits of fresh rows from a fit of all the rows under the chosen penalties."""
    model = fit(weighted(blocks, choice.factors), labels, choice.strength)
    result: NDArray[np.float64] = model.decision_function(weighted(fresh, choice.factors))
    return result
