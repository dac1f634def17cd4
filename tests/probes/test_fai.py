"""FAI from the engine's steps to the score, against attention weights that transformers gives; in traces, old and new."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from eager_reference import attention_of

from introspect.types import Budget, Request, SamplingParams
from introspect_probes import answer_evaluation, metrics
from introspect_probes.answer_evaluation import evaluate_answers
from introspect_probes.dataset import load_table
from introspect_probes.record import answer_cases, record
from introspect_probes.report import answers_table
from introspect_probes.traces import TraceWriter, manifest_of, read_manifest, read_traces
from introspect_probes.training_free import SCORES, TrainingFree, Words
from introspect_probes.worlds.world import get_world

HORIZON = range(10, 51)


@pytest.fixture(scope="module")
def cases():
    return list(get_world("digits").cases(8, seed=21, pool="test", kinds={"describe": 1, "digit_at": 1}))


def test_the_score_is_the_paper_s_formula_on_attention_weights_of_transformers(engine, cases):
    loaded, case = engine.loaded, cases[0]
    request = Request.ask("one", case.question, case.picture(), sampling=SamplingParams(max_tokens=70))
    prompt = engine.encode(replace(request, influence=True))
    answer = np.random.default_rng(3).integers(10, 200, 70).tolist()
    steps = engine.score_encoded([prompt], [answer])[0]
    ids = torch.cat([prompt.token_ids, torch.tensor(answer)])[None]
    with attention_of(loaded.model, "eager"), torch.no_grad():
        weights = loaded.model(input_ids=ids, **prompt.pixels, use_cache=False, output_attentions=True).attentions
    attention = torch.cat(weights).double().numpy()  # [layers, heads, queries, keys]
    layers, heads, length, _ = attention.shape
    assert (layers, heads, length) == (loaded.num_layers, loaded.num_heads, prompt.length + 70)
    grouped = attention.reshape(layers * loaded.num_kv_heads, -1, length, length).mean(1)
    response, place = np.arange(prompt.length, length), np.arange(length)
    distance = [(a[response] * (response[:, None] - place)).sum(1).mean() for a in grouped]
    glob = grouped[np.argsort(distance)[-round(0.3 * len(distance)) :]].mean(0)
    words = [n for n, token in enumerate(answer) if token not in loaded.tokenizer.all_special_ids]
    later = {n: [prompt.length + n + lag for lag in HORIZON if prompt.length + n + lag < length] for n in words}
    expected = np.mean([glob[rows, prompt.length + n].mean() for n, rows in later.items() if rows])
    assert SCORES["fai"](Words(steps)) == pytest.approx(expected, rel=1e-3)
    session = TrainingFree(loaded).session(steps[0].prompt)
    for step in steps:
        session.step(step)
    assert session.finish().scores["fai"] == pytest.approx(expected, rel=1e-3)


def test_a_trace_keeps_it_where_it_was_asked_for(engine, cases, tmp_path):
    written = answer_cases(engine, [(case, Budget("snapkv", ratio=0.3)) for case in cases], influence=True)
    TraceWriter(tmp_path, manifest_of(engine.loaded)).write(written)
    back = list(read_traces(tmp_path))
    for ours, theirs in zip(back, written, strict=True):
        found, expected = ours.steps[-1].influence, theirs.steps[-1].influence
        assert found.shape == (sum(s.logits is not None for s in theirs.steps), engine.loaded.num_layers, engine.loaded.num_kv_heads)
        np.testing.assert_array_equal(found, expected.astype(np.float16).astype(np.float32))
    long = {trace.id: sum(s.logits is not None and not s.is_special for s in trace.steps) > HORIZON[0] for trace in back}
    assert len(set(long.values())) == 2
    assert {trace.id: bool(np.isfinite(SCORES["fai"](Words(trace.steps)))) for trace in back} == long


def test_a_folder_of_old_and_new_traces_is_read_and_the_old_ones_have_no_score(engine, cases, tmp_path):
    describing = [case for case in cases if case.kind == "describe"]
    first, second, third = describing[0], describing[1], describing[2]
    record([first], engine, tmp_path)
    old = tmp_path / "part-00000.parquet"
    pq.write_table(pq.read_table(old).drop_columns(["head_influence"]), old)  # as older versions wrote it
    record([second], engine, tmp_path)
    record([third], engine, tmp_path, influence=True)
    traces = list(read_traces(tmp_path))
    assert [trace.steps[-1].influence is None for trace in traces] == [True, True, False]
    table = load_table(traces)
    assert [bool(np.isfinite(a.scores["fai"])) for a in table.answers] == [False, False, True]
    assert all(np.isfinite(a.scores["waad"]) for a in table.answers)
    assert read_manifest(tmp_path)["format"] == manifest_of(engine.loaded)["format"]


def test_what_some_answers_have_is_compared_on_those(monkeypatch):
    rng = np.random.default_rng(0)
    labels = np.tile([0, 1], 40).astype(np.int8)
    fai = np.where(np.arange(80) < 30, labels + rng.normal(0, 0.01, 80), np.nan)
    scores = {"FAI": fai, "L": rng.normal(size=80)}
    monkeypatch.setattr(answer_evaluation, "answer_scores", lambda _fit, _test: scores)
    monkeypatch.setattr(metrics, "RESAMPLES", 50)
    facts = {"correct": labels, "reduced": np.zeros(80, dtype=np.bool_), "groups": np.arange(80).astype(str)}
    test = SimpleNamespace(**facts, conditions=np.full(80, "full"), answers=[None] * 80)
    probe = np.where(np.arange(80) < 30, 0.5, 0.3 + 0.4 * labels)  # knows nothing of those
    found = evaluate_answers(SimpleNamespace(**facts), test, probe, ["full"])["full"]  # type: ignore[arg-type]
    assert set(found["auroc"]) == {"L", "probe"}
    assert found["of_some"]["FAI"]["answers"] == 30
    assert {name: own[0] for name, own in found["of_some"]["FAI"]["auroc"].items() if name != "L"} == {"FAI": 1.0, "probe": 0.5}
    assert found["auroc"]["probe"][0] > 0.7
    table = answers_table({"conditions": ["full"], "answers": {"full": found}})
    assert "| FAI, of the answers that have it | 1.000 [1.000, 1.000] of 30, probe 0.500" in table
