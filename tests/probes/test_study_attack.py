"""The study of attack: the penalty is what it says, the fine-tuning hides and resumes, both models are judged on the same cases."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from introspect.loading import embedded_folder
from introspect_kernels import Segment
from introspect_probes.dataset import load_table
from introspect_probes.embedded.batches import SEARCH_MIX, PackedBatches
from introspect_probes.embedded.shape import EMBEDDED
from introspect_probes.errors import ProbesError
from introspect_probes.record import record
from introspect_probes.studies import attack as study
from introspect_probes.studies import hiding
from introspect_probes.studies.attack import attack_table
from introspect_probes.studies.hiding import RECORD, Hiding, hide
from introspect_probes.traces import read_traces
from introspect_probes.worlds.scene import NATURAL
from introspect_probes.worlds.world import get_world

PLAN = Hiding(steps=3, batch=1, save_every=1, lr=5e-3, weight=10.0)


@pytest.fixture(scope="module")
def hidden(tmp_path_factory):
    folder = tmp_path_factory.mktemp("attack") / "model"
    return folder, hide(folder, PLAN)


def test_what_is_shown_is_the_mass_on_the_image_in_rows_that_predict_an_answer():
    weights = torch.zeros(1, 2, 3, 3)
    weights[0, :, 2] = torch.tensor([[0.5, 0.25, 0.25], [0.0, 0.0, 1.0]])
    weights[0, :, 1] = torch.tensor([1.0, 0.0, 0.0])  # a row of the question: nothing is asked of it
    is_image, rows = torch.tensor([[True, True, False]]), torch.tensor([[False, False, True]])
    assert float(hiding._shown(weights, is_image, rows)) == pytest.approx(-0.5 * math.log(0.25))


def test_fine_tuning_shows_less_and_touches_the_language_model_alone(hidden):
    folder, found = hidden
    assert [point["step"] for point in found["curve"]] == [1, 2, 3]
    assert not (folder / "state.safetensors").exists()
    original, changed = (AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32) for path in (embedded_folder(), folder))
    kept = dict(original.named_parameters())
    moved = {name for name, value in changed.named_parameters() if not torch.equal(value, kept[name])}
    assert moved
    assert all("language_model" in name for name in moved)
    tokenizer = AutoProcessor.from_pretrained(folder).tokenizer
    batch = next(iter(PackedBatches(tokenizer, EMBEDDED, 1, 5, 0, mix=SEARCH_MIX, style=NATURAL)))
    shown = []
    for model in (original, changed):
        model.set_attn_implementation({"text_config": "eager"})
        shown.append(float(hiding.losses(model, batch)[1].detach()))
    assert shown[1] < 0.9 * shown[0]


def test_fine_tuning_goes_on_where_it_was_and_is_not_repeated(hidden, tmp_path, monkeypatch):
    folder, whole = hidden
    saved = hiding._save

    def interrupted(*given):
        saved(*given)
        raise KeyboardInterrupt

    monkeypatch.setattr(hiding, "_save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        hide(tmp_path / "model", PLAN)
    monkeypatch.setattr(hiding, "_save", saved)
    with pytest.raises(ProbesError, match="of another plan"):
        hide(tmp_path / "model", replace(PLAN, seed=1))
    assert hide(tmp_path / "model", PLAN)["curve"] == whole["curve"]
    monkeypatch.setattr(hiding, "_train", None)
    assert hide(folder, PLAN) == json.loads((folder / RECORD).read_text())
    with pytest.raises(ProbesError, match="made by another plan"):
        hide(folder, replace(PLAN, weight=2.0))


def test_both_models_are_judged_by_one_probe_set_and_filed(hidden, probes, engine, tmp_path, monkeypatch):
    folder, _ = hidden
    fitted_on = tmp_path / "fit"
    cases = get_world("digits").cases(24, seed=4, pool="probe", kinds=["digit_at", "sum_row"])
    record(cases, engine, fitted_on, budgets=[study.Budget("snapkv", ratio=0.1)])
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "model").symlink_to(folder, target_is_directory=True)
    monkeypatch.setattr(study, "SETTINGS", {"snapkv-6": study.Budget("snapkv", ratio=0.06)})
    given = {"plan": PLAN, "n": 12, "settings": ["snapkv-6"], "repeats": 2, "work": tmp_path / "work"}
    original, changed = study.attack(tmp_path / "out", probes, [fitted_on], **given)
    assert [original["arm"], changed["arm"]] == ["original-snapkv-6", "hidden-snapkv-6"]
    spoken = load_table(t for t in read_traces(tmp_path / "work" / "original-snapkv-6-test") if t.steps).answers
    masses = [np.nanmean(step.heads.mass[:, :, Segment.IMAGE]) for a in spoken for step in a.trace.steps if step.heads]
    assert original["image_mass"] == pytest.approx(np.mean(masses), abs=1e-4)
    assert changed["image_mass"] != original["image_mass"]
    assert (original["drift"], original["losses"]) == (None, None)
    assert set(changed["drift"]) == {"false_alarms_per_answer", "told", "median_delay"}
    assert json.loads((tmp_path / "out" / "hidden-snapkv-6.json").read_text()) == changed
    monkeypatch.setattr(study, "hide", None)
    assert study.attack(tmp_path / "out", probes, [fitted_on], **given) == [original, changed]
    assert "| hidden-snapkv-6 |" in attack_table([original, changed])


def test_the_table_names_the_stream_that_told_first():
    told = {"told": {"confidence": 1.0, "in_domain": 0.0, "any": 1.0}, "median_delay": {"confidence": 30.0, "in_domain": None, "any": 30.0}}
    assert study._drift_cells(told) == ["100%", "30", "confidence"]
    assert study._drift_cells({"told": {"confidence": 0.0, "any": 0.0}, "median_delay": {"confidence": None, "any": None}}) == [
        "0%",
        "-",
        "-",
    ]
    assert study._drift_cells(None) == ["-", "-", "-"]
