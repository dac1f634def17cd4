"""A user's own cases and people's labels: from a line of JSON to a probe set that says what it cannot say."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from introspect.engine import Engine
from introspect.types import Budget
from introspect_probes.dataset import load_table
from introspect_probes.errors import CaseError, FitError, TraceError
from introspect_probes.evaluation import evaluate
from introspect_probes.labels import read_labelled, read_labels
from introspect_probes.matching import MATCHERS, get_matcher
from introspect_probes.parts import part_of
from introspect_probes.probe_set import load_probe_set
from introspect_probes.record import record
from introspect_probes.traces import TraceWriter, read_manifest, read_traces
from introspect_probes.train import train
from introspect_probes.worlds.cases import read_cases, write_cases
from introspect_probes.worlds.world import get_world


@pytest.fixture(scope="module")
def own_folder(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hundred cases as a stranger would bring them: pictures, questions, answers; no world, no pool, no spans."""
    folder = tmp_path_factory.mktemp("own")
    cases = get_world("digits").cases(140, seed=21, pool="test", kinds=["sum_row", "count"])
    write_cases((replace(c, id=f"own-{i}", kind="question", pool=None, group=f"g{i}") for i, c in enumerate(cases)), folder / "cases.jsonl")
    record(read_cases(folder / "cases.jsonl"), engine, folder / "traces", matcher="numeric", budgets=[Budget("snapkv", ratio=0.1)])
    return folder / "traces"


@pytest.mark.parametrize(
    ("matcher", "text", "answers", "right"),
    [
        ("exact", " A cat ", ("A cat",), True),
        ("exact", "a cat", ("A cat",), False),
        ("normalised", " a  CAT. ", ("A cat",), True),
        ("contains", "I see a cat, sleeping.", ("cat", "dog"), True),
        ("contains", "I see a catalogue", ("cat",), False),
        ("numeric", "3 plus 4 is 7", ("7",), True),
        ("numeric", "about 1,250.0 of them", ("1250",), True),
        ("numeric", "-7", ("7",), False),
        ("numeric", "seven", ("7",), False),
    ],
)
def test_matchers_say_what_their_names_say(matcher: str, text: str, answers: tuple[str, ...], right: bool) -> None:
    assert MATCHERS[matcher](text, answers) is right


def test_a_matcher_that_cannot_judge_says_so() -> None:
    with pytest.raises(CaseError, match="a number in every accepted answer, got 'red'"):
        MATCHERS["numeric"]("7", ("red",))
    with pytest.raises(CaseError, match="exact, normalised, contains, numeric"):
        get_matcher("fuzzy")


def test_the_matcher_is_named_and_not_mixed(own_folder: Path) -> None:
    manifest = read_manifest(own_folder)
    assert manifest["matcher"] == "numeric"
    with pytest.raises(TraceError, match="judged by the matcher numeric, not normalised"):
        TraceWriter(own_folder, {**manifest, "matcher": "normalised"})


@pytest.fixture(scope="module")
def planted_folder(own_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same answers, right where the model was surer than usual: a truth that probes must find."""
    folder = tmp_path_factory.mktemp("planted")
    traces = list(read_traces(own_folder))
    surety = [t.steps[0].logits.logprob for t in traces if t.steps[0].logits is not None]
    usual = float(np.median(surety))
    TraceWriter(folder, read_manifest(own_folder)).write(replace(t, correct=int(s > usual)) for t, s in zip(traces, surety, strict=True))
    return folder


def test_cases_without_claims_fit_confidence_only_and_the_card_says_so(planted_folder: Path, tmp_path: Path) -> None:
    train([planted_folder], tmp_path, name="own-1")
    probes = load_probe_set(tmp_path)
    assert (probes.claims, probes.strategy, probes.domain) == (None, None, None)
    assert set(probes.manifest["absent"]) == {"hallucination_risk", "strategy", "in_domain"}
    assert "makes a claim" in probes.manifest["absent"]["hallucination_risk"]
    card = (tmp_path / "card.md").read_text(encoding="utf-8")
    assert "Hallucination risk: absent" in card
    assert "matcher `numeric`" in card

    trace = next(t for t in read_traces(planted_folder) if part_of(t) == "test")
    session = probes.session(trace.prompt)
    for step in trace.steps:
        session.step(step)
    signal = session.finish()
    assert signal.confidence is not None
    assert 0 < signal.confidence < 1
    assert (signal.hallucination_risk, signal.strategy, signal.in_domain, signal.spans) == (None, None, None, None)
    assert signal.calibrated

    report = evaluate(probes, [planted_folder], tmp_path / "report")
    assert "claims" not in report
    assert report["answers"]["snapkv@10%"]["auroc"]["probe"][0] > 0.9
    assert "hallucination_risk" in report["absent"]
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "<svg" in page
    assert "<script" not in page
    assert "data:image/png;base64," in page
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)", page), "nothing is fetched from elsewhere"


def write_labels(folder: Path, rows: list[dict[str, object]], name: str = "x") -> None:
    """Labels as the service writes them."""
    pq.write_table(pa.Table.from_pylist(rows), folder / f"labels-{name}.parquet")


@pytest.fixture
def unlabelled(own_folder: Path, tmp_path: Path) -> Path:
    """The same answers, their truth unknown, as the service stores them."""
    TraceWriter(tmp_path / "feedback", read_manifest(own_folder)).write(
        replace(t, correct=-1, question="anything ?") for t in list(read_traces(own_folder))[:6]
    )
    return tmp_path / "feedback"


def test_feedback_is_joined_by_id_and_the_latest_label_stands(unlabelled: Path) -> None:
    traces = list(read_traces(unlabelled))
    first, second = traces[0].id, traces[1].id
    write_labels(unlabelled, [{"id": first, "correct": 1, "spans": [], "time": "2026-01-02T00:00:00Z"}], "a")
    write_labels(unlabelled, [{"id": first, "correct": 0, "spans": [], "time": "2026-01-01T00:00:00Z"}], "b")
    span = {"start": 0, "end": len(traces[1].answer), "label": 1}
    write_labels(unlabelled, [{"id": second, "correct": 0, "spans": [span], "time": "2026-01-01T00:00:00Z"}], "c")
    joined = {t.id: t for t in read_labelled(unlabelled)}
    assert [joined[first].correct, joined[second].correct] == [1, 0]
    assert [t.correct for t in joined.values()].count(-1) == 4
    assert joined[first].claims == ()
    assert [(c.kind, c.label, c.start) for c in joined[second].claims][:1] == [("span", 1, 0)]
    table = load_table(read_labelled(unlabelled))
    assert len(table.answers) == 2
    assert len(table.unlabelled) == 4


def test_a_label_of_a_world_question_judges_the_world_s_claims(own_folder: Path, tmp_path: Path) -> None:
    trace = next(t for t in read_traces(own_folder) if t.question.startswith("how many"))
    TraceWriter(tmp_path, read_manifest(own_folder)).write([replace(trace, correct=-1)])
    for correct, label in ((1, 0), (0, 1)):
        write_labels(tmp_path, [{"id": trace.id, "correct": correct}])
        assert [(c.kind, c.label) for t in read_labelled(tmp_path) for c in t.claims] == [("count", label)]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "a", "correct": 2}, "row 0: expected 0 or 1 in the column `correct`, got 2"),
        ({"id": None, "correct": 1}, "expected the trace's id"),
        ({"id": "a", "correct": 1, "spans": [{"start": 3, "end": 3, "label": 0}]}, "expected a span"),
    ],
)
def test_labels_that_make_no_sense_are_named(tmp_path: Path, row: dict[str, object], message: str) -> None:
    write_labels(tmp_path, [row])
    with pytest.raises(TraceError, match=message):
        read_labels(tmp_path)


def test_a_label_without_its_answer_is_named(unlabelled: Path) -> None:
    write_labels(unlabelled, [{"id": "gone@full", "correct": 1}])
    with pytest.raises(TraceError, match="a label for 'gone@full' and no such trace"):
        list(read_labelled(unlabelled))


def test_wrong_inputs_are_named_with_the_remedy(unlabelled: Path, own_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FitError, match=r"answers to fit on is labelled \(the first is own-"):
        train([unlabelled], tmp_path / "out", name="x")
    with pytest.raises(TraceError, match="occurs twice"):
        train([own_folder, own_folder], tmp_path / "out", name="x")
    manifest = read_manifest(own_folder)
    TraceWriter(tmp_path / "right", manifest).write(replace(t, correct=1) for t in read_traces(own_folder))
    with pytest.raises(FitError, match=r"confidence: all \d+ labels are 1; record harder"):
        train([tmp_path / "right"], tmp_path / "out", name="x")
    TraceWriter(tmp_path / "few", manifest).write(replace(t, group=f"g{int(t.group[1:]) % 8}") for t in read_traces(own_folder))
    with pytest.raises(FitError, match="groups"):
        train([tmp_path / "few"], tmp_path / "out", name="x")
    TraceWriter(tmp_path / "other", {**manifest, "matcher": "exact"}).write(read_traces(own_folder))
    with pytest.raises(FitError, match="differ in their matcher"):
        train([own_folder, tmp_path / "other"], tmp_path / "out", name="x")


def test_a_statistic_that_is_not_finite_is_named_by_trace_and_token(own_folder: Path) -> None:
    trace = next(iter(read_traces(own_folder)))
    heads = trace.steps[0].heads
    assert heads is not None
    broken = replace(trace.steps[0], heads=replace(heads, mass=np.full_like(heads.mass, np.nan)))
    with pytest.raises(TraceError, match=f"the trace {trace.id} holds a statistic that is not finite at token 0"):
        load_table([replace(trace, steps=(broken, *trace.steps[1:]))])


def test_parts_of_another_schema_are_named(own_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps(read_manifest(own_folder)), encoding="utf-8")
    table = pq.read_table(next(own_folder.glob("part-*.parquet")))
    pq.write_table(table.drop_columns(["picture", "expected"]), tmp_path / "part-00000.parquet")
    assert next(read_traces(tmp_path)).picture is None, "traces of before pictures were kept are read"
    pq.write_table(table.drop_columns(["margin"]), tmp_path / "part-00001.parquet")
    with pytest.raises(TraceError, match=r"part-00001.parquet is of another schema: without the column margin"):
        list(read_traces(tmp_path))
