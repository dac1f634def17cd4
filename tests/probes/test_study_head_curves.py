"""Head-score curves: what is read off made curves, and once through the engine on runs of two families."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText

from introspect.loading import embedded_folder
from introspect_probes.embedded.checkpoints import save_checkpoint
from introspect_probes.embedded.model import build_model, build_processor
from introspect_probes.embedded.plan import PLANS
from introspect_probes.errors import ProbesError
from introspect_probes.studies import head_curves as study
from introspect_probes.studies.curves_table import head_curves_table, jump_of, looking_heads, looking_level


def entry(best, rates, right, with_final):
    return {"hit_rate": best, "hit_rates": rates, "right": right, "with_final": with_final}


def made(*curve):
    model = {"family": "llava", "layers": 2, "heads": 2, "kv_heads": 1, "parameters": 1_250_000}
    return {"run": "made-1", "model": model, "steps": [0, 10, 30, 100][: len(curve)], "request": {"heads": 200}, "heads": list(curve)}


LEARNED = made(
    entry(0.2, [[0.1, 0.2], [0.1, 0.1]], 0.0, -0.1),
    entry(0.25, [[0.1, 0.25], [0.1, 0.3]], 0.3, 0.2),
    entry(0.9, [[0.1, 0.33], [0.9, 0.8]], 0.7, 0.95),
    entry(0.96, [[0.31, 0.33], [0.9, 0.96]], 0.9, 1.0),
)


def test_a_head_looks_three_standard_errors_above_the_best_untrained_one():
    assert looking_level(LEARNED) == pytest.approx(0.2 + 3 * 0.04)  # the deviation of a difference of two rates of .2 among 200
    assert [looking_heads(LEARNED, number) for number in range(4)] == [[0, 0], [0, 0], [1, 2], [1, 2]]


def test_the_jump_is_the_largest_rise_and_the_table_tells_it():
    assert jump_of(LEARNED) == 1
    row = head_curves_table([LEARNED]).splitlines()[2]
    told = [cell.strip() for cell in row.strip("|").split("|")]
    assert told == [
        "made-1", "llava, 2 layers of 2 heads, 1 KV heads", "1.25 M", "90%", "20%, 96%", "10 to 30", "25% to 90%", "30% to 70%",
        "-0.10, +0.20, +0.95", "0, 3 of 4", "1 2",
    ]  # fmt: skip


def test_where_no_head_learned_to_look_no_jump_is_told():
    flat = made(entry(0.2, [[0.1, 0.2], [0.1, 0.1]], 0.0, 0.1), entry(0.31, [[0.1, 0.31], [0.1, 0.1]], 0.1, 1.0))
    assert jump_of(flat) is None
    assert "| none | - | - | +0.10 | -, 0 of 4 | 0 0 |" in head_curves_table([flat])
    unseen = made(None, entry(0.9, [[0.9, 0.9], [0.9, 0.9]], 0.1, 1.0))
    assert looking_level(unseen) is None
    assert "No run has untrained weights that hit anything" in head_curves_table([unseen])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The embedded model under less and less noise, and an untrained Qwen2-VL of which the second checkpoint is another one."""
    llava, qwen = (tmp_path_factory.mktemp("runs") / name for name in ("noisy-0", "qwen-0"))
    shutil.copytree(embedded_folder(), llava / "model")
    for step, noise in ((0, 6.0), (9, 0.1)):
        model = AutoModelForImageTextToText.from_pretrained(embedded_folder(), dtype=torch.float32)
        torch.manual_seed(0)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(noise * p.std() * torch.randn_like(p))
        save_checkpoint(model, llava, step)
    shape = PLANS["study-qwen2-vl"].shape
    for step in (0, 5):
        model = build_model(shape)
        qwen.mkdir(exist_ok=True)
        save_checkpoint(model, qwen, step)
    model.save_pretrained(qwen / "model")
    build_processor(shape).save_pretrained(qwen / "model")
    return llava, qwen


def test_runs_of_two_families_are_scored_through_the_engine_and_not_again(runs, tmp_path, monkeypatch):
    found = study.head_curves(tmp_path / "out", runs, heads=16, work=tmp_path / "work")
    llava, qwen = found
    assert llava["model"] == {"family": "llava", "layers": 5, "heads": 8, "kv_heads": 4, "parameters": 2922688}
    assert (qwen["model"]["family"], qwen["model"]["layers"], qwen["model"]["heads"], qwen["model"]["kv_heads"]) == ("qwen2_vl", 4, 4, 2)
    assert (llava["training"]["size"], llava["training"]["seed"]) == ("embedded", 0)  # of a record from before plans had sizes
    assert qwen["training"] == {}
    for result in found:
        for step in result["heads"]:
            assert np.array(step["hit_rates"]).max() == pytest.approx(step["hit_rate"], abs=1e-4)
            assert np.sum(step["scores"]) == pytest.approx(1, abs=1e-4)
        assert result["heads"][-1]["with_final"] == 1
    assert llava["heads"][0]["right"] < 0.3 < 0.8 < llava["heads"][1]["right"]
    assert llava["heads"][0]["hit_rate"] < 0.5 < 0.8 < llava["heads"][1]["hit_rate"]
    assert qwen["heads"][1]["right"] < 0.3
    monkeypatch.setattr(study, "head_curve", None)
    assert study.head_curves(tmp_path / "out", runs, heads=16, work=tmp_path / "work") == found


def test_a_run_without_its_null_is_refused(runs, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(runs[1], other)
    (other / "checkpoint-000000.safetensors").rename(other / "checkpoint-000001.safetensors")
    with pytest.raises(ProbesError, match="no untrained weights"):
        study.head_curves(tmp_path / "out", [other])
