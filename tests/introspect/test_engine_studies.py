"""The engine's studies: arms differ from coverage in the one thing they say, and ratios are those of the times."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from introspect.engine import Engine
from introspect.loading import load_model
from introspect.policies import Prefilled, available_policies
from introspect.policies.coverage import Coverage, laid_out
from introspect_kernels import Segment
from introspect_probes.budget_accuracy import budget_accuracy
from introspect_probes.coverage_study import ARMS, AllLayersAlike, AllText, OneDraw, Unstratified, WindowRanking, coverage_study, only_layer
from introspect_probes.cpu_arms import Times, inputs_of, load_pair, prompts_of, run_engine, run_transformers
from introspect_probes.cpu_study import _headline, _medians, _ratio
from introspect_probes.engine_report import blocks
from introspect_probes.engine_study import FILES, table_of


def prompt(seed: int = 0) -> Prefilled:
    rng = np.random.default_rng(seed)
    segments = np.full(164, int(Segment.QUESTION), dtype=np.uint8)
    segments[0], segments[2:146] = Segment.SINK, Segment.IMAGE
    scores = [torch.from_numpy(rng.dirichlet(np.full(164, 0.1), 4).astype(np.float32)) for _ in range(5)]
    return Prefilled(164, 5, 4, 4, scores, seed, segments=segments, grids=((12, 12),))


def test_arms_keep_the_budget_and_drop_one_part_each() -> None:
    given = prompt()
    chosen = {arm: arm().select(given, 45) for arm in (Coverage, *ARMS)}
    for selection in chosen.values():
        assert sum(len(kept) for heads in selection for kept in heads) == 45 * 20
    sizes = {arm: [len(heads[0]) for heads in selection] for arm, selection in chosen.items()}
    assert sizes[AllLayersAlike] == [45] * 5
    assert sizes[Coverage] == sizes[Unstratified] == sizes[OneDraw] == sizes[WindowRanking] == [85, 35, 35, 35, 35]
    text = set(np.flatnonzero(given.segments != Segment.IMAGE).tolist())
    assert all(text <= set(kept.tolist()) for heads in chosen[AllText] for kept in heads)
    assert not all(text <= set(kept.tolist()) for heads in chosen[Coverage] for kept in heads)
    assert all(torch.equal(heads[0], kept) for heads in chosen[OneDraw] for kept in heads)
    line = {int(entry): place for place, entry in enumerate(laid_out(given))}

    def widest_gap(kept: torch.Tensor) -> int:
        return int(np.diff(sorted(line[entry] for entry in kept.tolist())).max())

    assert max(widest_gap(kept) for heads in chosen[Coverage][1:] for kept in heads) <= 12  # two runs of six
    assert max(widest_gap(kept) for heads in chosen[Unstratified][1:] for kept in heads) > 12
    alone = only_layer(2)().select(given, 45)
    assert [len(heads[0]) for heads in alone] == [164, 164, 45, 164, 164]


def test_the_coverage_study_answers_under_every_arm_and_leaves_none_behind() -> None:
    before = available_policies()
    engine = Engine(load_model())
    result = coverage_study(engine, scenes=1, pool="calibration", ratios=(0.12,))
    assert available_policies() == before
    assert [row["policy"] for row in result["rows"]].count("coverage") == 1
    assert len(result["rows"]) == 1 + 7 + 5
    whole, tight = result["rows"][0], next(row for row in result["rows"] if row["policy"] == "layer 3 only")
    assert tight["effective"] == pytest.approx(whole["effective"] * 4 / 5 + tight["nominal"] / 5, rel=0.01)
    assert "| coverage, heads alike | 12% |" in table_of(result)


def test_arms_of_the_cpu_study_make_the_same_tokens() -> None:
    loaded, plain = load_pair("embedded")
    inputs = [inputs_of(plain, 160, seed) for seed in range(2)]
    engine = Engine(loaded)
    ours: dict[str, list[int]] = {"r0": [], "r1": []}
    for step in engine.generate_encoded(prompts_of(loaded, inputs, 5, signals=False)):
        assert step.heads is None
        if step.token_id >= 0:
            ours[step.prompt.request_id].append(step.token_id)
    with torch.inference_mode():
        for number, one in enumerate(inputs):
            theirs = plain.generate(**one, max_new_tokens=5, do_sample=False)[0, 160:].tolist()
            assert ours[f"r{number}"] == theirs
    seen: list[int] = []
    on = run_engine(engine, prompts_of(loaded, inputs, 5, signals=True), lambda: seen.append(engine.kv_bytes.owned))
    assert len(on.steps) == len(run_transformers(plain, inputs, 5).steps) == 4
    assert len(seen) == 5
    # 5 layers of 4 KV heads, keys and values of 32 numbers, for at least prompt and answer of both
    assert min(seen) >= 2 * 5 * 4 * 164 * 2 * 32 * plain.dtype.itemsize


def test_ratios_are_medians_of_the_rounds_own() -> None:
    times = {
        "on": [Times(1.0, (1.0, 3.0, 1.0)), Times(2.0, (2.0, 2.0, 2.0)), Times(9.0, (1.0, 1.0, 1.0))],
        "off": [Times(1.0, (0.5, 0.5, 1.0)), Times(2.0, (1.0, 1.0, 0.0)), Times(3.0, (0.0, 1.0, 2.0))],
    }
    assert _ratio(times, "on", "off") == 2.0
    assert _ratio(times, "on", "off", step=True) == 2.0
    assert _medians(times)["whole_seconds"] == {"on": 8.0, "off": 4.0}
    assert _medians(times)["step_milliseconds"] == {"on": 1000.0, "off": 1000.0}
    rows = [
        {"model": "random-100m", "prompt": 2048, "batch": batch, "overhead_on_over_off": value} for batch, value in ((1, 1.02), (8, 1.5))
    ]
    assert _headline(rows) == {"overhead_random_100m_2048": 1.02}


def test_a_study_that_was_interrupted_goes_on_where_it_was(tmp_path: Path) -> None:
    engine, keep = Engine(load_model()), tmp_path / "accuracy.unfinished"
    arms = {"scenes": 1, "pool": "calibration", "policies": ("random",), "ratios": (0.5,), "keep": keep}
    whole = budget_accuracy(engine, **arms)
    noted = json.loads(keep.read_text(encoding="utf-8"))
    assert list(noted["parts"]) == ["full 1.0", "random 0.5"]
    noted["parts"]["full 1.0"][0]["false_claims"] = 3  # is taken from here
    claims = noted["parts"]["full 1.0"][0]["claims"]
    keep.write_text(json.dumps(noted), encoding="utf-8")
    again = budget_accuracy(engine, **arms)
    assert again["rows"][0]["false_rate"][0] == round(3 / claims, 4)
    assert again["rows"][1] == whole["rows"][1]
    other = budget_accuracy(engine, **{**arms, "seed": 1})  # another question: begins anew
    assert other["rows"][0]["false_rate"][0] != round(3 / claims, 4)
    assert json.loads(keep.read_text(encoding="utf-8"))["key"]["asked"]["seed"] == 1


def test_a_block_of_figures_comes_from_each_result_file_that_is_there(tmp_path: Path) -> None:
    assert blocks(tmp_path) == {}
    triples = {"picture": [0.5, 0.4, 0.6], "facts": [1.0, 0.9, 1.0]}
    rows = [{"heads": name, "silenced": k, **triples} for name, k in (("none", 0), ("visual", 2), ("random", 2))]
    (tmp_path / f"{FILES['heads']}.json").write_text(json.dumps({"rows": rows}), encoding="utf-8")
    found = blocks(tmp_path)
    assert list(found) == ["engine-heads"]
    assert found["engine-heads"].splitlines()[-1].startswith("| 2 | 0.500 [0.400, 0.600] | 0.500")
