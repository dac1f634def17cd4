"""Making a `Reference`: the answers of the calibration part, scored as they would be online."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from introspect_probes.claim_probe import is_reduced
from introspect_probes.dataset import Table
from introspect_probes.drift import STREAMS, streams_of
from introspect_probes.probe_set import ProbeSet
from introspect_probes.reference import Reference
from introspect_probes.traces import Trace

MOST = 1000
"""Answers that are kept of each kind of cache: as many as ADWIN gains from."""


def with_reference(probes: ProbeSet, calibration: Table, *, seed: int = 0) -> ProbeSet:
    """The probe set with what it says of the answers that it was calibrated on, drawn at random."""
    rng = np.random.default_rng(seed)
    kept = []
    for reduced in (False, True):
        traces = [a.trace for a in calibration.answers if is_reduced(a.trace.prompt) is reduced]
        drawn = [traces[i] for i in rng.permutation(len(traces))[:MOST]]
        found = [answer_streams(probes, trace) for trace in drawn]
        rows = [[np.nan if (value := streams[name]) is None else value for name in STREAMS] for streams in found]
        kept.append(np.array(rows, dtype=np.float32).reshape(len(rows), len(STREAMS)))
    return replace(probes, reference=Reference(STREAMS, *kept))


def answer_streams(probes: ProbeSet, trace: Trace) -> dict[str, float | None]:
    """What is watched of a recorded answer."""
    session = probes.session(trace.prompt, provisional=False)
    for step in trace.steps:
        session.step(step)
    return streams_of(session.finish())
