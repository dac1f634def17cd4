"""The study of learning state: on items whose truth is known, and once through the engine on three made runs."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText

from introspect.loading import embedded_folder
from introspect_probes.embedded.checkpoints import save_checkpoint
from introspect_probes.errors import ProbesError
from introspect_probes.studies import learning_state as study
from introspect_probes.studies.learning_rows import Rows, standardised_within
from introspect_probes.studies.learning_table import learning_state_table, read_runs

STEPS = [0, 10, 30, 100]
ITEMS = 240


def made(seed, weight=2.5):
    """Rows of each checkpoint; what will be learned shows in logit 0 and, with `weight`, in statistic 4 of trained weights."""
    rng = np.random.default_rng(seed)
    seen, hidden = rng.normal(size=ITEMS), rng.normal(size=ITEMS)
    final = rng.random(ITEMS) < 1 / (1 + np.exp(-(seen + weight * hidden)))
    kind = rng.choice(["color_at", "digit_at"], ITEMS)
    rows = {}
    for number, step in enumerate(STEPS):
        statistics = rng.normal(size=(ITEMS, 12)) + 5 * number  # what drifts with the step is no help within it
        if step:
            statistics[:, 4] += 2 * hidden
        right = final if step == STEPS[-1] else final & (rng.random(ITEMS) < number / 6)
        rows[step] = Rows(
            logits=np.stack([seen + 0.5 * rng.normal(size=ITEMS), *rng.normal(size=(6, ITEMS))], 1).astype(np.float32),
            truth=rng.normal(size=ITEMS).astype(np.float32) - 3,
            statistics=statistics.astype(np.float32),
            correct=right.astype(np.int8),
            kind=kind,
            group=np.array([f"digit-{i}" for i in rng.integers(0, 60, ITEMS)]),
        )
    return rows


@pytest.fixture(scope="module")
def telling():
    return study.compare([study.items_of(made(seed), STEPS) for seed in (0, 1)], study.items_of(made(2), STEPS))


def test_what_statistics_tell_beyond_logits_step_and_type_is_found(telling):
    for how in ("delta", "delta_within"):
        for name in ("L+S", "L+truth+S"):
            value, low, _ = telling[how][name]["difference"]
            assert value > 0.08
            assert low > 0.03
    assert telling["auroc"]["L"] > telling["auroc"]["step and type"] + 0.05
    assert abs(telling["within"]["step and type"] - 0.5) < 0.02


def test_neither_untrained_weights_nor_exchanged_items_tell_it(telling):
    assert abs(telling["delta"]["L+untrained"]["difference"][0]) < 0.02
    assert telling["permuted"]["largest"] < 0.03 < telling["delta"]["L+S"]["difference"][0]
    assert telling["permuted"]["times"] == study.PERMUTATIONS


def test_where_statistics_tell_nothing_no_gain_is_found():
    known = [study.items_of(made(seed, weight=0.0), STEPS) for seed in (3, 4)]
    result = study.compare(known, study.items_of(made(5, weight=0.0), STEPS))
    value, low, _ = result["delta"]["L+S"]["difference"]
    assert abs(value) < 0.03
    assert low <= 0


def test_items_are_the_wrong_ones_with_the_label_of_the_end():
    rows = made(6)
    items = study.items_of(rows, STEPS)
    wrong = [rows[step].correct == 0 for step in STEPS[:-1]]
    assert len(items.label) == sum(w.sum() for w in wrong)
    np.testing.assert_array_equal(items.label, np.concatenate([rows[STEPS[-1]].correct[w] for w in wrong]))
    np.testing.assert_array_equal(items.blocks["step and type"].sum(1), 3)
    first = np.flatnonzero(wrong[0])[0]
    assert items.stratum[0] == f"0 {rows[0].kind[first]}"
    untouched = standardised_within(rows[0].statistics, rows[0].kind)[wrong[1]]
    np.testing.assert_array_equal(items.blocks["untrained"][wrong[0].sum() :][: wrong[1].sum()], untouched)


def test_standardised_within_strata_has_their_mean_and_deviation_and_leaves_small_ones_at_zero():
    rng = np.random.default_rng(0)
    strata = np.array(["a"] * 50 + ["b"] * 50 + ["c"] * 3)
    matrix = rng.normal(size=(103, 2)) * np.where(strata == "b", 9, 1)[:, None] + np.where(strata == "a", 4, 0)[:, None]
    matrix[:, 1] = 7
    found = standardised_within(matrix, strata)
    for name in "ab":
        assert found[strata == name, 0].mean() == pytest.approx(0, abs=1e-9)
        assert found[strata == name, 0].std() == pytest.approx(1)
    assert not found[strata == "c"].any()
    assert not found[:, 1].any()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three runs whose checkpoints are the embedded model under less and less noise."""
    folders = []
    for seed in range(3):
        run = tmp_path_factory.mktemp("runs") / f"made-{seed}"
        shutil.copytree(embedded_folder(), run / "model")
        (run / "model" / "training_record.json").unlink()
        for step, noise in ((0, 1.5), (5, 0.5), (9, 0.25)):
            model = AutoModelForImageTextToText.from_pretrained(embedded_folder(), dtype=torch.float32)
            torch.manual_seed(seed)
            with torch.no_grad():
                for p in model.parameters():
                    p.add_(noise * p.std() * torch.randn_like(p))
            save_checkpoint(model, run, step)
        folders.append(run)
    return folders


def test_the_study_runs_through_the_engine_and_resumes(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(study, "RESAMPLES", 60)
    monkeypatch.setattr(study, "PERMUTATIONS", 2)
    given = {"fit": 24, "test": 24, "heads": 4, "work": tmp_path / "work"}
    results = study.learning_state(tmp_path / "out", runs, **given)
    assert read_runs(tmp_path / "out") == results
    for result in results:
        right = [entry["all"] for entry in result["right"]]
        assert right[0] < 0.3 < 0.6 < right[-1] < 1
        assert result["items"]["test"] == sum(round(24 * (1 - share)) for share in right[:-1])
        assert result["heads"][-1]["with_final"] == 1
        assert np.array(result["heads"][-1]["scores"]).shape == (5, 8)
        assert result["heads"][-1]["hit_rate"] > 0.5
    assert "| made-0 |" in learning_state_table(results)
    monkeypatch.setattr(study, "compare", None)  # what is done is not run again
    assert study.learning_state(tmp_path / "out", runs, **given) == results
    with pytest.raises(ProbesError, match="three runs or more"):
        study.learning_state(tmp_path / "out", runs[:2], **given)


def test_runs_of_other_plans_are_refused(runs, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(runs[0], other)
    (other / "checkpoint-000005.safetensors").rename(other / "checkpoint-000006.safetensors")
    with pytest.raises(ProbesError, match="other checkpoints"):
        study.learning_state(tmp_path / "out", [*runs[:2], other])


def test_rows_are_stored_as_they_are(tmp_path):
    rows = made(7)[10]
    rows.save(tmp_path / "rows.safetensors")
    again = Rows.load(tmp_path / "rows.safetensors")
    for name in Rows.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(again, name), getattr(rows, name))
    assert len(replace(again)) == ITEMS
