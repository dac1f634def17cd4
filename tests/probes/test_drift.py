"""Changes are told, quiet streams stay quiet, and a broken promise is found out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from introspect_probes.claim_probe import is_reduced
from introspect_probes.dataset import load_table
from introspect_probes.drift import STREAMS, DriftMonitor
from introspect_probes.drift_study import delays, false_alarms
from introspect_probes.errors import ProbesError
from introspect_probes.guarantee import Guarantee
from introspect_probes.linear import LinearProbe
from introspect_probes.probe_set import ProbeSet, load_probe_set
from introspect_probes.reference import Reference
from introspect_probes.reference_fit import answer_streams, with_reference
from introspect_probes.risk_monitor import RiskMonitor
from introspect_probes.traces import Trace

PROMISE = Guarantee(target_risk=0.1, delta=0.1, threshold=0.8, groups=200, accepted=100, wrong=3)


def test_a_change_is_told_in_its_own_stream() -> None:
    rng = np.random.default_rng(0)
    monitor = DriftMonitor({"a": rng.normal(0.7, 0.1, 500).tolist(), "b": rng.normal(0.2, 0.1, 500).tolist()})
    alarms = []
    for number in range(900):
        mean = 0.7 if number < 200 else 0.4
        alarms += monitor.update({"a": rng.normal(mean, 0.1), "b": rng.normal(0.2, 0.1)})
    assert {alarm.stream for alarm in alarms} == {"a"}
    assert 200 < alarms[0].answer < 260
    assert alarms[0].reference == pytest.approx(0.7, abs=0.02)
    assert alarms[-1].recent < alarms[-1].reference
    assert alarms[-1].answer < 700, "what lasts is no change any more"


def test_quiet_streams_seldom_alarm() -> None:
    rng = np.random.default_rng(1)
    reference = [{"a": float(v)} for v in rng.beta(8, 2, 400)]
    usual = [{"a": float(v)} for v in rng.beta(8, 2, 400)]
    assert false_alarms(reference, usual, ["a"], 0.002, 20, rng)["any"] < 1e-3
    shifted = [{"a": float(v)} for v in rng.beta(4, 6, 400)]
    found = delays(reference, usual, shifted, ["a"], 0.002, 20, rng)
    assert found["told"]["any"] == 1
    assert 1 < found["median_delay"]["a"] < 60


def test_absent_values_are_left_out_and_unknown_streams_refused() -> None:
    monitor = DriftMonitor({"a": [0.5, 0.6]})
    assert monitor.update({"a": None}) == []
    assert monitor.update({"a": float("nan")}) == []
    with pytest.raises(ProbesError, match="expected streams a, got 'c'"):
        monitor.update({"c": 1.0})
    with pytest.raises(ProbesError, match="no reference"):
        DriftMonitor({"a": [float("nan")]})


def test_a_kept_promise_raises_no_alarm_and_a_broken_one_does() -> None:
    def alarmed(wrong: float, seed: int) -> int | None:
        rng, monitor = np.random.default_rng(seed), RiskMonitor(PROMISE)
        for number in range(4):
            if monitor.update([(0.9, int(rng.random() >= wrong)) for _ in range(75)]):
                return number
        return None

    assert sum(alarmed(0.09, seed) is not None for seed in range(20)) <= 2
    assert all(alarmed(0.35, seed) is not None for seed in range(5))


def test_answers_under_the_threshold_promise_nothing() -> None:
    monitor = RiskMonitor(PROMISE)
    assert not monitor.update([(0.5, 0)] * 500)
    assert monitor.accepted == 0


def test_streams_of_an_answer_are_its_signals(probes: ProbeSet, traces: list[Trace]) -> None:
    found = answer_streams(probes, traces[0])
    assert set(found) == set(STREAMS)
    assert found["confidence"] is not None
    assert 0 <= found["confidence"] <= 1
    tokens = load_table(traces[:1]).answers[0].tokens
    probe = probes.confidence.chosen(is_reduced=is_reduced(traces[0].prompt))
    assert found["feature_distance"] == pytest.approx(_distance(probe, np.mean([t.heads for t in tokens], axis=0)), rel=1e-4)
    assert 0.1 < found["feature_distance"] < 5  # a few deviations at most: the fit met answers like this one


def _distance(probe: LinearProbe, heads: np.ndarray) -> float:
    """Root mean square of the deviations from the fit, of those features that confidence reads."""
    used = np.flatnonzero(probe.weight[0, : len(heads)])
    return float(np.sqrt(np.mean(((heads - probe.mean[: len(heads)]) / probe.scale[: len(heads)])[used] ** 2)))


def test_the_reference_is_kept_with_the_probe_set(probes: ProbeSet, traces: list[Trace], tmp_path: Path) -> None:
    with_reference(probes, load_table(traces)).save(tmp_path)
    kept = load_probe_set(tmp_path).reference
    assert kept is not None
    for reduced in (False, True):
        own = [answer_streams(probes, t) for t in traces if is_reduced(t.prompt) is reduced]
        values = kept.values(is_reduced=reduced)
        assert sorted(values["confidence"]) == pytest.approx(sorted(s["confidence"] for s in own), rel=1e-6)  # type: ignore[type-var]
        assert len(values["hallucination_risk"]) == sum(s["hallucination_risk"] is not None for s in own)
    quiet = DriftMonitor(kept.values(is_reduced=False))
    assert quiet.update(answer_streams(probes, traces[0])) == []


def test_a_set_without_a_reference_has_none(probes: ProbeSet, tmp_path: Path) -> None:
    replace(probes, reference=None).save(tmp_path)
    assert load_probe_set(tmp_path).reference is None


def test_a_reference_without_a_column_for_each_stream_is_refused() -> None:
    arrays = {"reference/whole": np.zeros((3, 2), np.float32), "reference/reduced": np.zeros((3, 1), np.float32)}
    with pytest.raises(ProbesError, match=r"2 streams, but an array of shape \(3, 1\)"):
        Reference.from_arrays(("a", "b"), arrays)
