"""Fitting the strategy probe on claims whose cause was found by intervention."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from introspect_probes.dataset import Claims
from introspect_probes.fitting import STRENGTHS, class_thresholds, fit_logistic, fit_temperature
from introspect_probes.linear import LinearProbe
from introspect_probes.signals import STRATEGIES
from introspect_probes.strategy_probe import StrategyProbe

COVERAGE = 0.9
MIN_STATES = 20
"""A strategy state enters the probe only with this many labelled claims to fit on."""


def strategy_states(fit: Claims, calibration: Claims) -> list[int]:
    """Indices into `STRATEGIES` of the states with enough labelled claims in both parts."""
    return [
        s for s in range(len(STRATEGIES)) if (fit.strategy == s).sum() >= MIN_STATES and (calibration.strategy == s).sum() >= MIN_STATES
    ]


def fit_strategy(fit: Claims, calibration: Claims) -> StrategyProbe:
    """The strategy probe on claims with a causal label, its temperature and conformal thresholds."""
    states = strategy_states(fit, calibration)
    rows, held = fit.where(np.isin(fit.strategy, states)), calibration.where(np.isin(calibration.strategy, states))
    labels = np.array([states.index(s) for s in rows.strategy], dtype=np.int8)
    held_labels = np.array([states.index(s) for s in held.strategy], dtype=np.int8)
    counts = np.bincount(labels, minlength=len(states))
    probe, _ = fit_logistic(rows.heads, labels, rows.group, weights=(len(labels) / len(states) / counts)[labels], strengths=STRENGTHS[:2])
    logits = probe.logits(held.heads)
    if logits.shape[1] == 1:
        probe = _two_outputs(probe)
        logits = probe.logits(held.heads)
    temperature = fit_temperature(logits, held_labels)
    draft = StrategyProbe(probe, tuple(STRATEGIES[i] for i in states), temperature, ())
    return replace(draft, thresholds=class_thresholds(draft.probabilities(held.heads), held_labels, 1 - COVERAGE))


def _two_outputs(probe: LinearProbe) -> LinearProbe:
    """A binary probe with one output a class."""
    return LinearProbe(
        probe.mean, probe.scale, np.concatenate([0 * probe.weight, probe.weight]), np.concatenate([0 * probe.bias, probe.bias])
    )
