"""The study of free-running answers: its arms are what their names say, its steps resume, its table says what was met."""

from __future__ import annotations

import json

import numpy as np
import pytest

from introspect.types import Budget
from introspect_probes.dataset import load_table
from introspect_probes.errors import ProbesError
from introspect_probes.published import published_confidence
from introspect_probes.record import record
from introspect_probes.studies import free_running as study
from introspect_probes.studies.pooled_calibration import ALL, FILE, USUAL, pooled_calibration
from introspect_probes.studies.shifts import HEAVY_NOISE, SHIFTS, get_shift
from introspect_probes.studies.tables import free_running_table, read_results
from introspect_probes.traces import read_traces
from introspect_probes.worlds.scene import PHOTOGRAPHERS
from introspect_probes.worlds.world import get_world


@pytest.mark.parametrize("shift", SHIFTS.values(), ids=SHIFTS)
def test_arms_are_what_their_names_say(shift):
    scenes = [c.scene for c in shift.cases(30, seed=0)]
    digits = [(cell.digit, cell.color, s.caption) for s in scenes for _, cell in s.visible()]
    assert all(c.pool == "test" for c in shift.cases(3, seed=0))
    assert (shift.budget.policy != "full") == (shift.degrades == "cache")
    if "noise" in shift.name:
        assert {s.noise for s in scenes} == {HEAVY_NOISE}
    if shift.name == "covered":  # questions that a cover would make ambiguous draw another scene
        assert {c.kind for c in shift.cases(80, seed=0) if c.scene.has_cover()} == {"describe", "digit_at", "color_at", "sum_row"}
        assert np.mean([c.scene.has_cover() for c in shift.cases(80, seed=0) if c.kind == "describe"]) > 0.8
    if "sight" in shift.name:
        assert not any(d == 7 and color == "blue" for d, color, _ in digits)
    if "text" in shift.name:
        assert not any(caption and PHOTOGRAPHERS[caption] == d for d, _, caption in digits)
        assert all(s.caption for s in scenes)
    if "4x4" in shift.name:
        assert {(s.rows, s.columns) for s in scenes} == {(4, 4)}


@pytest.fixture(scope="module")
def fitted_on(engine, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fit")
    cases = get_world("digits").cases(24, seed=4, pool="probe", kinds=["digit_at", "sum_row"])
    record(cases, engine, folder, budgets=[Budget("snapkv", ratio=0.1)])
    return folder


def test_every_arm_is_judged_filed_and_not_run_again(engine, probes, fitted_on, tmp_path, monkeypatch):
    monkeypatch.setattr(study, "load_model", lambda _: engine.loaded)
    given = {"arms": ["snapkv-6"], "n": 10, "work": tmp_path / "work"}
    (result,) = study.free_running(tmp_path / "out", probes, [fitted_on], **given)
    assert json.loads((tmp_path / "out" / "snapkv-6.json").read_text()) == result
    assert result["answers"] + result["silent"] == 10
    assert result["kept"] < 0.07
    assert set(result["claims"]["scores"]) == {"max probability", "L", "probe"}
    assert result["confidence"]["count"] == result["answers"]
    monkeypatch.setattr(study, "record", None)
    assert study.free_running(tmp_path / "out", probes, [fitted_on], **given) == [result]
    request = result["request"]
    pooled = pooled_calibration(tmp_path / "out", probes, [get_shift("snapkv-6")], tmp_path / "work", request)
    assert json.loads((tmp_path / "out" / FILE).read_text()) == pooled
    assert pooled[USUAL] == pooled[ALL]  # of one arm, whose pictures are usual
    assert {name: pooled[ALL]["confidence"][name] for name in ("count", "ece")} == {n: result["confidence"][n] for n in ("count", "ece")}
    assert "| snapkv-6 |" in free_running_table([result], pooled)
    assert read_results(tmp_path / "out", list(SHIFTS)) == [result]


def test_calibration_is_over_all_answers_of_the_arms_that_are_asked_for(engine, probes, tmp_path):
    shifts = [get_shift("full"), get_shift("heavy-noise"), get_shift("grid-4x4")]
    for number, shift in enumerate(shifts):
        record(shift.cases(8, seed=number), engine, tmp_path / shift.name, budgets=[shift.budget])
    pooled = pooled_calibration(tmp_path, probes, shifts, tmp_path, {"seed": 0})
    tables = [load_table(read_traces(tmp_path / shift.name)) for shift in shifts]
    confidence = np.concatenate([published_confidence(probes, table) for table in tables])
    right = np.concatenate([table.correct for table in tables]).astype(np.int64)
    assert pooled[ALL]["confidence"]["count"] == 24
    assert pooled[ALL]["confidence"]["brier"] == pytest.approx(np.mean((confidence - right) ** 2), abs=1e-4)
    assert pooled[USUAL]["confidence"]["count"] == 8
    assert pooled_calibration(tmp_path, probes, [get_shift("grid-4x4")], tmp_path, {"seed": 1}).keys() & {USUAL, ALL} == {ALL}


def test_wrong_inputs_are_named(probes, tmp_path):
    with pytest.raises(ProbesError, match="unknown arm 'fog'"):
        get_shift("fog")
    with pytest.raises(ProbesError, match="holds no traces"):
        study.free_running(tmp_path / "out", probes, [tmp_path], arms=["heavy-noise"])


def test_the_table_counts_the_aims_that_were_met():
    def result(arm, degrades, gain, within):
        scores = {"max probability": [0.7, 0.6, 0.8], "L": [0.8, 0.7, 0.9], "probe": [0.8 + gain, 0.7, 0.9]}
        claims = {"claims": 100, "false": 20, "scores": scores, "probe_minus_L": [gain, gain - 0.01, gain + 0.01]}
        position = {"pairs": 3, "scores": {"probe": [within, 0.8, 0.9]}}
        facts = {"kept": 0.2, "answers": 10, "right": 0.5, "risk": {"ece": 0.02}, "confidence": {"ece": 0.03}}
        return {"arm": arm, "degrades": degrades, "claims": claims, "within_position_and_type": position, **facts}

    told = {"count": 10_500, "ece": 0.025, "intervals": {"ece": [0.025, 0.02, 0.031]}}
    text = free_running_table(
        [result("tight", "cache", 0.07, 0.9), result("loose", "cache", 0.02, 0.8), result("dark", "image", 0.02, 0.9)],
        {ALL: {"confidence": told, "risk": told}},
    )
    assert "over all arms: 0.025 [0.020, 0.031] of the confidence of 10,500 answers" in text
    assert "Where the cache is degraded, 0.06 or more over L with the interval above zero: 1 of 2 arms (tight)." in text
    assert "Where the image is degraded, 0.03 or more over L with the interval above zero: 0 of 1 arms." in text
    assert "At least .85 within type and position: 2 of 3 arms." in text
