"""A nonlinear probe: a small network on standardised blocks, its weight decay chosen by grouped cross-validation."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.neural_network import MLPClassifier

from introspect_probes.studies.nested import FOLDS

Floats = NDArray[np.floating]
DECAYS = (1.0, 10.0, 100.0)
"""Candidate penalties (scikit-learn's alpha)."""
UNITS, EPOCHS, BATCH, MEMBERS = 64, 30, 128, 3


def choose_decay(matrix: Floats, labels: NDArray[np.int8], groups: NDArray[np.str_]) -> float:
    """The penalty with the lowest cross-validated log loss; rows of one group stay in one fold."""
    folds = list(StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0).split(matrix, labels, groups))

    def loss(decay: float) -> float:
        probabilities = np.empty(len(labels))
        for train, test in folds:
            probabilities[test] = _network(matrix[train], labels[train], decay, 0).predict_proba(matrix[test])[:, 1]
        return float(log_loss(labels, probabilities))

    return min(DECAYS, key=loss)


def network_scores(matrix: Floats, labels: NDArray[np.int8], fresh: Floats, decay: float) -> NDArray[np.float64]:
    """Mean logit of fresh rows over networks that differ in their seed."""
    probabilities = [_network(matrix, labels, decay, seed).predict_proba(fresh)[:, 1] for seed in range(MEMBERS)]
    clipped = np.clip(probabilities, 1e-7, 1 - 1e-7)
    result: NDArray[np.float64] = np.log(clipped / (1 - clipped)).mean(0)
    return result


def _network(matrix: Floats, labels: NDArray[np.int8], decay: float, seed: int) -> MLPClassifier:
    network = MLPClassifier(
        hidden_layer_sizes=(UNITS,),
        alpha=decay,
        max_iter=EPOCHS,
        learning_rate_init=2e-3,
        batch_size=min(BATCH, len(labels)),
        random_state=seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of epochs is the stopping rule
        return network.fit(matrix, labels)
