"""The committed visual heads are the embedded model's own, and `sparsemm` works out of the box."""

from __future__ import annotations

import numpy as np
import pytest
from typer.testing import CliRunner

from introspect.engine import Engine
from introspect.heads.cases import HeadCase
from introspect.heads.scoring import rank_correlation, score_heads
from introspect.heads.visual_heads import read_visual_heads
from introspect.loading import load_model
from introspect.types import Budget
from introspect_probes.budget_accuracy import budget_accuracy
from introspect_probes.head_ablation import head_ablation
from introspect_probes.record import request_of
from introspect_probes.worlds.world import get_world
from introspect_service.cli import app
from introspect_service.score_heads import head_case, world_cases


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(load_model())


def test_sparsemm_works_out_of_the_box(engine: Engine) -> None:
    (case,) = get_world("digits").cases(1, seed=1, pool="test", kinds=("describe",))
    first = next(iter(engine.generate([request_of(case, Budget("sparsemm", ratio=0.25))])))
    assert first.heads is not None
    kept = first.heads.retained.sum(-1)
    assert kept.mean() == first.prompt.budget.nominal == first.prompt.budget.effective
    heads = read_visual_heads(engine.loaded.heads_path, engine.loaded).per_kv_head(4)  # type: ignore[arg-type]
    assert np.unravel_index(kept.argmax(), kept.shape) == np.unravel_index(heads.argmax(), heads.shape)


def test_the_committed_scores_come_again_from_other_cases(engine: Engine) -> None:
    committed = read_visual_heads(engine.loaded.heads_path, engine.loaded).scores  # type: ignore[arg-type]
    found = score_heads(engine, world_cases("digits", 48, 7, "calibration"))
    assert rank_correlation(found.scores, committed) > 0.9
    assert found.facts["best_hit_rate"] > 0.8  # a ninth by chance


def test_each_claim_of_a_world_has_the_cell_that_shows_it() -> None:
    seen = 0
    for case in get_world("digits").cases(40, seed=2, pool="probe", kinds=("describe", "digit_at", "add_row")):
        found: HeadCase = head_case(case)
        for piece in found.evidence:
            left, top, right, bottom = piece.boxes[0]
            assert (right - left, bottom - top) == (32, 32)
            cell = case.scene.at(int(top) // 32 + 1, int(left) // 32 + 1)  # type: ignore[union-attr]
            word = found.answer[piece.start : piece.end]
            if cell is not None and not cell.covered and word in (*map(str, range(10)), cell.color) and case.kind != "describe":
                assert word in (str(cell.digit), cell.color)
                seen += 1
    assert seen > 20


def test_score_heads_writes_scores_and_their_picture(tmp_path) -> None:
    out = tmp_path / "heads.json"
    done = CliRunner().invoke(app, ["score-heads", "--out", str(out), "--n", "16"])
    assert done.exit_code == 0, done.output
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    loaded = load_model(heads=out)
    assert read_visual_heads(out, loaded).facts["cases"]["pool"] == "probe"
    refused = CliRunner().invoke(app, ["score-heads", "--out", str(out), "--world", "letters"])
    assert refused.exit_code == 1
    assert "unknown world" in refused.output


def test_rendered_text_is_in_the_scripts_asked_for(tmp_path) -> None:
    out = tmp_path / "heads.json"
    command = ["score-heads", "--out", str(out), "--n", "2", "--no-picture"]
    done = CliRunner().invoke(app, [*command, "--script", "greek"])
    assert done.exit_code == 0, done.output
    cases = read_visual_heads(out, load_model(heads=out)).facts["cases"]
    assert (cases["source"], cases["scripts"]) == ("rendered text", ["greek"])
    refused = CliRunner().invoke(app, [*command, "--world", "digits", "--script", "greek"])
    assert refused.exit_code == 1
    assert "leave --world and --cases out" in refused.output
    unknown = CliRunner().invoke(app, [*command, "--script", "runes"])
    assert unknown.exit_code == 1
    assert "runes" in unknown.output


def test_accuracy_study_compares_policies_at_equal_effective_budget(engine: Engine) -> None:
    result = budget_accuracy(engine, scenes=4, policies=("random", "sparsemm"), ratios=(0.12,))
    full, random, sparse = result["rows"]
    assert (full["policy"], random["policy"], sparse["policy"]) == ("full", "random", "sparsemm")
    assert random["nominal"] == random["effective"] == sparse["nominal"] == sparse["effective"] < full["effective"] / 8
    for measure in ("false_rate", "missing_rate", "wrong", "exact", "exact_other"):
        value, low, high = random[measure]
        assert 0 <= low <= value <= high <= 1
    assert full["false_rate"][0] < random["false_rate"][0]
    assert sparse["against_random"][0] == pytest.approx(sparse["false_rate"][0] - random["false_rate"][0], abs=2e-4)


def test_ablation_study_silences_what_it_says(engine: Engine) -> None:
    heads = read_visual_heads(engine.loaded.heads_path, engine.loaded)  # type: ignore[arg-type]
    result = head_ablation(engine, heads, n=6, steps=(1, 20))
    assert [(row["heads"], row["silenced"]) for row in result["rows"]] == [
        ("none", 0), ("visual", 1), ("random", 1), ("visual", 20), ("random", 20)
    ]  # fmt: skip
    assert result["top"][0] == list(map(int, np.unravel_index(heads.scores.argmax(), heads.scores.shape)))
    assert result["rows"][0]["picture"][0] >= 0.5
    assert result["rows"][3]["picture"][0] < 0.5  # without the better half of its eyes nobody can answer
