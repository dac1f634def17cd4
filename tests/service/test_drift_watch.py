"""Drift of the answers is told where the probe set says what is usual, and nothing is told where it does not."""

from __future__ import annotations

import sys
import time
from dataclasses import replace

import httpx
import numpy as np
import pytest

from introspect.types import EffectiveBudget, PromptInfo, StepTrace
from introspect_probes.drift import STREAMS
from introspect_probes.probe_set import load_probe_set
from introspect_probes.reference import Reference
from introspect_probes.signals import AnswerSignal
from introspect_probes.training_free import TrainingFree
from introspect_service.drift_watch import DriftWatch
from introspect_service.generation import Ended
from introspect_service.runner import Failed
from introspect_service.settings import Settings

RNG = np.random.default_rng(0)


def usual(answers, confidence=0.8):
    """Streams of that many answers: confidence around a mean, no risk known, the rest around a half."""
    rows = RNG.normal([confidence, 0.5, 0.5, 0.5, 0.5], 0.05, (answers, len(STREAMS))).astype(np.float32)
    rows[:, STREAMS.index("hallucination_risk")] = np.nan
    return rows


@pytest.fixture(scope="module")
def probes():
    """The embedded set with a reference: confidence is usually .8, and .4 under a reduced cache."""
    return replace(load_probe_set(), reference=Reference(STREAMS, usual(400), usual(400, 0.4)))


def prompt(policy="full", kept=5.0):
    return PromptInfo(
        request_id="r", question="?", token_ids=np.arange(5), segments=np.zeros(5, np.uint8), image_embedding=None, image_grids=(),
        budget=EffectiveBudget(policy, 5, kept, 5), logical=np.zeros(6, np.int32), retention=np.zeros((1, 1, 6), np.float32),
    )  # fmt: skip


def ended(confidence, asked=None, probe_set="x-1"):
    """An answer of that confidence, usual in all else."""
    asked = asked or prompt()
    signal = AnswerSignal(
        confidence=confidence, hallucination_risk=None, strategy=None, spans=None, calibrated=True, probe_set=probe_set, in_domain=0.5,
        note=None, scores={"mean_logprob": 0.5}, feature_distance=0.5,
    )  # fmt: skip
    return Ended(asked, "a", "", 1, "stop", signal, 0.1, StepTrace(asked, 1, 5, -1, "", False, None, None, "stop"))


def ready(watch):
    """The watch, once it is made ready."""
    while watch.report().reason == "the monitor is being made ready":
        time.sleep(0.01)
    return watch


def stream(watch, name, cache="whole"):
    kind = next(kind for kind in watch.report().kinds if kind.cache == cache)
    return next(each for each in kind.streams if each.name == name)


def test_a_change_is_told_in_its_stream_alone_with_what_is_usual_and_what_is_now(probes):
    watch = ready(DriftWatch(probes))
    for value in RNG.normal(0.8, 0.05, 100):
        watch.hear(ended(float(value)))
    quiet = stream(watch, "confidence")
    assert (quiet.answers, quiet.alarms, quiet.last_alarm) == (100, 0, None)
    assert quiet.reference == pytest.approx(0.8, abs=0.02)
    for value in RNG.normal(0.4, 0.05, 100):
        watch.hear(ended(float(value)))
    told = stream(watch, "confidence")
    assert told.alarms >= 1
    assert 100 < told.last_alarm <= 200
    assert told.last_alarm_time.endswith("Z")
    assert told.recent == pytest.approx(0.4, abs=0.03)
    assert stream(watch, "mean_logprob").alarms == 0


def test_answers_under_a_reduced_cache_are_compared_with_such(probes):
    watch = ready(DriftWatch(probes))
    for value in RNG.normal(0.4, 0.05, 100):
        watch.hear(ended(float(value), prompt("snapkv", 2.0)))
    assert stream(watch, "confidence", "reduced").alarms == 0
    assert stream(watch, "confidence", "reduced").answers == 100
    assert stream(watch, "confidence").answers == 0
    assert stream(watch, "confidence").recent is None


def test_what_has_no_reference_or_no_calibrated_value_is_not_watched(probes):
    watch = ready(DriftWatch(probes))
    watch.hear(ended(0.8, probe_set=None))
    watch.hear(Failed("cancelled", "the client left"))
    assert [kind.answers for kind in watch.report().kinds] == [0, 0]
    assert {each.name for each in watch.report().kinds[0].streams} == set(STREAMS) - {"hallucination_risk"}


def test_where_nothing_can_be_compared_the_reason_stands_and_no_number(probes, backend, monkeypatch):
    def reason(scorer):
        watch = ready(DriftWatch(scorer))
        watch.hear(ended(0.8))
        said = watch.report().model_dump()
        assert not said.pop("watched")
        assert set(said) <= {"reason", "probe_set"}
        return said["reason"]

    assert "no probe set" in reason(TrainingFree(backend.model))
    assert "keeps no reference" in reason(replace(probes, reference=None))
    nothing = np.zeros((0, len(STREAMS)), np.float32)
    assert "empty" in reason(replace(probes, reference=Reference(STREAMS, nothing, nothing)))
    monkeypatch.setitem(sys.modules, "river.drift", None)
    assert "introspect-mllm[drift]" in reason(probes)


def test_the_service_tells_of_it_in_its_route_and_its_metrics(backend, probes, make):
    fitted = {**probes.manifest, "model": {**probes.manifest["model"], "fingerprint": backend.model.fingerprint}}
    watched = replace(backend, scorer=replace(probes, manifest=fitted).check(backend.model))
    settings = Settings(model=backend.model.name, redis="off", port=make.free_port())
    with make.running(settings, watched) as (address, app):
        ready(app.state.service.probes.drift)
        body = {"model": backend.model.name, "messages": make.messages(), "max_tokens": 2, "n": 2}
        assert httpx.post(f"{address}/v1/chat/completions", json=body, timeout=30).status_code == 200
        said = httpx.get(f"{address}/v1/probes/drift").json()
        metrics = httpx.get(f"{address}/metrics").text
    assert said["watched"]
    assert said["probe_set"] == probes.name
    whole = next(kind for kind in said["kinds"] if kind["cache"] == "whole")
    assert whole["answers"] == 2, "each choice is an answer"
    confidence = next(each for each in whole["streams"] if each["name"] == "confidence")
    assert 0 <= confidence["recent"] <= 1
    assert f'introspect_drift_recent{{cache="whole",stream="confidence"}} {confidence["recent"]}' in metrics
    assert 'introspect_drift_alarms_total{cache="whole",stream="confidence"} 0.0' in metrics
