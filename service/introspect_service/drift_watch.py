"""Do answers still look like those that the probe set was calibrated on? Watched answer by answer, without labels.

Answers under a reduced cache are compared with such, for a budget that somebody asks for is no drift.
"""

from __future__ import annotations

import logging
import statistics
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Literal

from introspect_probes.claim_probe import is_reduced
from introspect_probes.drift import DriftMonitor, streams_of
from introspect_probes.errors import ProbesError
from introspect_probes.probe_set import ProbeSet
from introspect_probes.scoring import Scorer
from introspect_service import clock
from introspect_service.generation import Ended, Progress
from introspect_service.runner import Failed
from introspect_service.signals import Sparse, rounded

logger = logging.getLogger(__name__)

RECENT = 50
"""Answers whose mean is told as that of late."""

Cache = Literal["whole", "reduced"]
CACHES: tuple[Cache, ...] = ("whole", "reduced")


class DriftStream(Sparse):
    """One number of each answer, and whether it has changed.

    Attributes:
        name: `confidence`, `hallucination_risk`, `in_domain`, `mean_logprob`, or `feature_distance`: how far the head statistics
            are from those of the fit, in its standard deviations.
        reference: mean over the answers that the probe set was calibrated on.
        recent: mean over the last answers, at most 50; absent before the first.
        answers: how many had a value.
        alarms: how often a change was told. What lasts is told for a while and then is no change any more.
        last_alarm: the answer at which one was told last, counted as `DriftKind.answers`; absent where none was.
        last_alarm_time: when that was.
    """

    name: str
    reference: float
    recent: float | None = None
    answers: int
    alarms: int
    last_alarm: int | None = None
    last_alarm_time: str | None = None


class DriftKind(Sparse):
    """The answers under one kind of cache since the probe set became active; only kinds that it has a reference for."""

    cache: Cache
    answers: int
    streams: tuple[DriftStream, ...]


class DriftReport(Sparse):
    """What is known of drift.

    Attributes:
        watched: whether answers are watched.
        reason: why they are not.
        probe_set: whose signals are watched.
        kinds: the streams.
    """

    watched: bool
    reason: str | None = None
    probe_set: str | None = None
    kinds: tuple[DriftKind, ...] | None = None


class _Stream:
    def __init__(self, name: str, reference: Sequence[float]) -> None:
        self.name, self.reference = name, statistics.fmean(reference)
        self.recent: deque[float] = deque(maxlen=RECENT)
        self.answers = self.alarms = 0
        self.last: tuple[int, str] | None = None

    def take(self, value: float) -> None:
        self.answers += 1
        self.recent.append(value)

    def report(self) -> DriftStream:
        at, when = self.last or (None, None)
        return DriftStream(
            name=self.name, reference=round(self.reference, 6), recent=rounded(statistics.fmean(self.recent)) if self.recent else None,
            answers=self.answers, alarms=self.alarms, last_alarm=at, last_alarm_time=when,
        )  # fmt: skip


class _Kind:
    """The answers under one kind of cache."""

    def __init__(self, reference: Mapping[str, Sequence[float]]) -> None:
        self.monitor = DriftMonitor(reference)
        self.streams = {name: _Stream(name, values) for name, values in reference.items()}

    def take(self, values: Mapping[str, float | None]) -> None:
        known = {name: value for name, value in values.items() if value is not None and name in self.streams}
        for name, value in known.items():
            self.streams[name].take(value)
        for alarm in self.monitor.update(known):
            stream = self.streams[alarm.stream]
            stream.alarms, stream.last = stream.alarms + 1, (alarm.answer, clock.timestamp())
            if stream.alarms == 1:
                logger.warning("drift: %s was %.3f on the calibration's answers, and changes", alarm.stream, alarm.reference)


class DriftWatch:
    """Watches the answers of one probe set.

    It is made ready on a thread of its own, as reading river takes seconds; answers before that are not watched.

    Args:
        scorer: the probe set, or who scores where there is none.
    """

    def __init__(self, scorer: Scorer) -> None:
        self._kinds: dict[Cache, _Kind] = {}
        self._name = scorer.name
        self._reason: str | None = "the monitor is being made ready"
        self._thread: threading.Thread | None = None
        if not isinstance(scorer, ProbeSet):
            self._reason = "no probe set scores the answers"
        elif scorer.reference is None:
            self._reason = f"the probe set {scorer.name} keeps no reference; one made by this version's `introspect train` does"
        else:
            known = {cache: scorer.reference.values(is_reduced=cache == "reduced") for cache in CACHES}
            self._thread = threading.Thread(target=self._make, args=(known,), name="introspect-drift", daemon=True)
            self._thread.start()

    def _make(self, known: Mapping[Cache, Mapping[str, Sequence[float]]]) -> None:
        try:
            self._kinds = {cache: _Kind(reference) for cache, reference in known.items() if reference}
            self._reason = None if self._kinds else "the probe set's reference is empty"
        except ProbesError as problem:  # river is not there
            self._reason = str(problem)
            logger.info("drift is not watched: %s", problem)

    def hear(self, what: Progress | Failed) -> None:
        """Take what happened to an answer of this probe set; call it on the event loop."""
        if isinstance(what, Ended) and what.signal.probe_set is not None:
            kind = self._kinds.get("reduced" if is_reduced(what.prompt) else "whole")
            if kind is not None:
                kind.take(streams_of(what.signal))

    def report(self) -> DriftReport:
        """What is known now."""
        kinds = tuple(
            DriftKind(cache=cache, answers=kind.monitor.answers, streams=tuple(stream.report() for stream in kind.streams.values()))
            for cache, kind in self._kinds.items()
        )
        return DriftReport(watched=bool(kinds), reason=self._reason, probe_set=self._name, kinds=kinds or None)
