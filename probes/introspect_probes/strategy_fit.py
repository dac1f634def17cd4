"""Fitting the strategy probe on claims whose cause was found by intervention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from introspect_probes.dataset import Claims
from introspect_probes.fitting import SMALL_STRENGTHS, class_thresholds, fit_logistic, fit_temperature
from introspect_probes.linear import LinearProbe
from introspect_probes.signals import STRATEGIES
from introspect_probes.strategy_probe import StrategyProbe

COVERAGE = 0.9
MIN_STATES = 20
"""A strategy state enters the probe only with this many labelled claims to fit on."""
MIN_HELD = 9
"""And with this many to calibrate on: from nine on, a conformal set of `COVERAGE` has a threshold of the state's own."""


def strategy_states(fit: Claims, calibration: Claims) -> list[int]:
    """Indices into `STRATEGIES` of the states with enough labelled claims in both parts."""
    return [s for s in range(len(STRATEGIES)) if (fit.strategy == s).sum() >= MIN_STATES and (calibration.strategy == s).sum() >= MIN_HELD]


def fit_strategy(fit: Claims, calibration: Claims) -> StrategyProbe:
    """The strategy probe on claims with a causal label, its temperature and conformal thresholds."""
    states = strategy_states(fit, calibration)
    rows, held = fit.where(np.isin(fit.strategy, states)), calibration.where(np.isin(calibration.strategy, states))
    labels = np.array([states.index(s) for s in rows.strategy], dtype=np.int8)
    held_labels = np.array([states.index(s) for s in held.strategy], dtype=np.int8)
    probe = one_against_the_rest(rows, labels, [STRATEGIES[s] for s in states])
    temperature = fit_temperature(probe.logits(held.heads), held_labels)
    draft = StrategyProbe(probe, tuple(STRATEGIES[i] for i in states), temperature, ())
    return replace(draft, thresholds=class_thresholds(draft.probabilities(held.heads), held_labels, 1 - COVERAGE))


def one_against_the_rest(rows: Claims, labels: NDArray[np.int8], names: Sequence[str]) -> LinearProbe:
    """A probe with an output a state, each an l1 regression of that state against the others with a penalty of its own.

    States differ in how many heads tell them: where a note is in the prompt one may do, whether a name was taught takes many.
    A penalty common to all of them leaves the latter with nothing.
    """
    weights = (len(labels) / len(names) / np.bincount(labels, minlength=len(names)))[labels]
    own = [
        fit_logistic(
            rows.heads, (labels == i).astype(np.int8), rows.group, weights=weights, strengths=SMALL_STRENGTHS, what=f"strategy, {name}"
        )[0]
        for i, name in enumerate(names)
    ]
    # All were fitted on the same rows, so that they standardise alike.
    return LinearProbe(own[0].mean, own[0].scale, np.concatenate([p.weight for p in own]), np.concatenate([p.bias for p in own]))
