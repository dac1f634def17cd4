"""What the model leaned on at a token, as it is served: softmax, temperature, conformal thresholds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from introspect_probes.linear import LinearProbe
from introspect_probes.signals import STRATEGIES, Strategy, StrategyLabel


@dataclass(frozen=True)
class StrategyProbe:
    """One regression on head statistics for each state, softmax over them, with class-conditional conformal sets.

    Attributes:
        probe: one output for each of `states`.
        states: labels in the probe's order.
        temperature: divides the logits.
        thresholds: smallest probability with which a label stays in the set, per label.
    """

    probe: LinearProbe
    states: tuple[StrategyLabel, ...]
    temperature: float
    thresholds: tuple[float, ...]

    def probabilities(self, heads: NDArray[np.floating]) -> NDArray[np.float64]:
        """Calibrated probabilities `[..., states]` from head features `[..., features]`."""
        return self.calibrated(self.probe.logits(heads))

    def calibrated(self, logits: NDArray[np.floating]) -> NDArray[np.float64]:
        """Calibrated probabilities `[..., states]` from the probe's logits."""
        logits = logits / self.temperature
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return np.asarray(weights / weights.sum(axis=-1, keepdims=True))

    def state(self, probabilities: NDArray[np.floating]) -> Strategy:
        """The state and its conformal set from probabilities in the order of `states`."""
        values = probabilities.tolist()
        order = sorted(range(len(values)), key=values.__getitem__, reverse=True)
        kept = tuple(self.states[i] for i in order if values[i] >= self.thresholds[i])
        by_label = dict(zip(self.states, values, strict=True))
        return Strategy(self.states[order[0]], {s: by_label[s] for s in STRATEGIES if s in by_label}, kept)

    def mean_state(self, strategies: list[Strategy]) -> Strategy:
        """The state of several tokens together: their probabilities averaged."""
        return self.state(np.mean([[s.probabilities[label] for label in self.states] for s in strategies], axis=0))
