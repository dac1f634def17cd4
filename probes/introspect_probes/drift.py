"""Do the answers still look like those that the probes were calibrated on? Watched online, answer by answer.

It needs no labels: ADWIN (Bifet and Gavalda 2007, by river) on each signal and on how far the features stray from the
fit. `risk_monitor.RiskMonitor` asks what only labels tell, whether a guarantee is still kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from introspect_probes.errors import ProbesError
from introspect_probes.signals import AnswerSignal

DELTA = 0.002
"""ADWIN's confidence for all streams together; they share it equally."""

STREAMS = ("confidence", "hallucination_risk", "in_domain", "mean_logprob", "feature_distance")
"""What is watched; each is of `signals.AnswerSignal`, `mean_logprob` among its scores."""


@dataclass(frozen=True)
class DriftAlarm:
    """One stream has moved.

    Attributes:
        stream: which.
        answer: how many answers had been watched, from 1.
        reference: mean over the reference.
        recent: mean over what ADWIN's window still holds; at first some of it is from before the change.
    """

    stream: str
    answer: int
    reference: float
    recent: float


class DriftMonitor:
    """Watches streams of numbers, one value of each an answer, for a change of their mean.

    Args:
        reference: values of each stream on answers that count as usual, such as `ProbeSet.reference` holds; in random order.
        delta: ADWIN's confidence, shared by the streams. Its bound is loose and not for ever: what false alarms there are
            on traces, and how long a change takes to be told, `drift_study` measures.

    Raises:
        ProbesError: river is not installed, or a stream has no reference.
    """

    def __init__(self, reference: Mapping[str, Sequence[float]], *, delta: float = DELTA) -> None:
        try:
            from river.drift import ADWIN
        except ImportError as problem:
            raise ProbesError("watching drift needs river: pip install 'introspect-mllm[drift]'") from problem
        self._reference, self._detectors = dict[str, float](), dict[str, ADWIN]()
        self.answers = 0
        for stream, values in reference.items():
            known = np.array([v for v in values if np.isfinite(v)])
            if not len(known):
                raise ProbesError(f"the stream {stream} has no reference; leave it out")
            detector = ADWIN(delta=delta / len(reference), clock=1)
            for value in known:
                detector.update(float(value))
            self._reference[stream], self._detectors[stream] = float(known.mean()), detector

    def update(self, values: Mapping[str, float | None]) -> list[DriftAlarm]:
        """Take one answer; absent values are left out.

        Returns:
            The streams in which a change was found at this answer. A change may be told again until the window has let go
            of what was before it, and then no more: the monitor tells changes, not states.

        Raises:
            ProbesError: a stream without a reference.
        """
        self.answers += 1
        alarms = []
        for stream, value in values.items():
            if stream not in self._detectors:
                raise ProbesError(f"expected streams {', '.join(self._detectors)}, got {stream!r}")
            if value is None or not np.isfinite(value):
                continue
            detector = self._detectors[stream]
            detector.update(float(value))
            if detector.drift_detected:
                alarms.append(DriftAlarm(stream, self.answers, self._reference[stream], float(detector.estimation)))
        return alarms


def streams_of(signal: AnswerSignal) -> dict[str, float | None]:
    """What is watched of one answer: its value in each of `STREAMS`."""
    return {
        "confidence": signal.confidence,
        "hallucination_risk": signal.hallucination_risk,
        "in_domain": signal.in_domain,
        "mean_logprob": signal.scores.get("mean_logprob"),
        "feature_distance": signal.feature_distance,
    }
