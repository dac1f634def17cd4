"""Do the answers still look like those that the probes were calibrated on? Watched online, answer by answer.

Two questions, two monitors. `DriftMonitor` needs no labels: ADWIN (Bifet and Gavalda 2007, by river) on each
signal and on how far the features stray from the fit. `RiskMonitor` needs labels: MAPIE's anytime-valid bound on
the share of wrong answers among the accepted ones (Podkopaev and Ramdas, arXiv 2110.06177).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from mapie.exchangeability_testing import RiskMonitoring

from introspect_probes.errors import ProbesError
from introspect_probes.features import TokenFeatures
from introspect_probes.guarantee import Guarantee
from introspect_probes.probe_set import ProbeSet
from introspect_probes.signals import AnswerSignal

DELTA = 0.002
"""ADWIN's confidence for all streams together; they share it equally."""


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
        reference: values of each stream on answers that count as usual, such as the calibration part's; in random order.
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


def streams_of(probes: ProbeSet, signal: AnswerSignal, tokens: Sequence[TokenFeatures]) -> dict[str, float | None]:
    """What is watched of one answer.

    `confidence`, `hallucination_risk`, `in_domain` and `mean_logprob` are signals; `feature_distance` is the root mean
    square of those head features that the confidence probe reads, in standard deviations of the fit.
    """
    return {
        "confidence": signal.confidence,
        "hallucination_risk": signal.hallucination_risk,
        "in_domain": signal.in_domain,
        "mean_logprob": signal.scores.get("mean_logprob"),
        "feature_distance": feature_distance(probes, tokens),
    }


def feature_distance(probes: ProbeSet, tokens: Sequence[TokenFeatures]) -> float | None:
    """Root mean square deviation from the fit of an answer's mean head features, as far as confidence reads them."""
    if not tokens:
        return None
    heads = np.mean([t.heads for t in tokens], axis=0)
    probe = probes.confidence
    used = np.flatnonzero(probe.weight[0, : len(heads)])
    if not len(used):
        return None
    return float(np.sqrt(np.mean(np.clip((heads[used] - probe.mean[used]) / probe.scale[used], -8, 8) ** 2)))


class RiskMonitor:
    """Watches whether a guarantee still holds, from labels as they come.

    Args:
        guarantee: what was promised.
        level: chance of ever raising the alarm while the promise holds, however long it is watched.
    """

    def __init__(self, guarantee: Guarantee, *, level: float = 0.05) -> None:
        self.guarantee = guarantee
        # MAPIE gives half of its level to a reference sample; here the threshold is the promise itself, so all of it is ours.
        self._monitor = RiskMonitoring(risk="accuracy", test_level=min(2 * level, 0.999), threshold=guarantee.target_risk, warn=False)
        self.accepted = 0

    def update(self, labels: Iterable[tuple[float, int]]) -> bool:
        """Take labelled answers as `(confidence, 1 right or 0 wrong)`; those under the threshold promise nothing.

        Returns:
            Whether the share of wrong answers among the accepted is now known to exceed the promise.
        """
        right = np.array([correct for confidence, correct in labels if confidence >= self.guarantee.threshold], dtype=int)
        if len(right):
            self.accepted += len(right)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # of a sequence of one
                self._monitor.update(right, np.ones_like(right))
        return self.accepted > 0 and bool(self._monitor.harmful_shift_detected)
