"""One code online and offline; what a probe set must not score, it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from introspect.engine import Engine
from introspect.types import Budget, ImagePart, Message, Request, SamplingParams, TextPart
from introspect_probes.dataset import load_table
from introspect_probes.domain import Domain
from introspect_probes.errors import ProbeMismatchError, ProbesError
from introspect_probes.grammar import WORDS_GRAMMAR
from introspect_probes.guarantee import Guarantee
from introspect_probes.probe_set import ProbeSet, load_probe_set
from introspect_probes.published import published_confidence, published_risks
from introspect_probes.record import request_of
from introspect_probes.signals import STRATEGIES, AnswerSignal
from introspect_probes.traces import Trace
from introspect_probes.training_free import SCORES, TrainingFree
from introspect_probes.worlds.outside import outside_cases
from introspect_probes.worlds.world import get_world


def test_a_session_says_what_the_offline_tables_say(probes: ProbeSet, traces: list[Trace]) -> None:
    table = load_table(traces)
    risks, confidence = published_risks(probes, table.claims), published_confidence(probes, table)
    for number, answer in enumerate(table.answers):
        session = probes.session(answer.trace.prompt)
        for step in answer.trace.steps:
            session.step(step)
        signal = session.finish()
        own = risks[table.claims.answer == number]
        assert signal.spans is not None
        np.testing.assert_allclose([s.hallucination_risk for s in signal.spans], own, atol=1e-6)
        assert signal.in_domain is not None
        assert signal.confidence == pytest.approx(confidence[number], abs=1e-6)


def test_signals_are_probabilities_and_revised_once(probes: ProbeSet, traces: list[Trace]) -> None:
    trace = max(traces, key=lambda t: len(t.claims))
    session = probes.session(trace.prompt)
    heard: dict[int, list[bool]] = {}
    told = 0
    for step in trace.steps:
        for signal in (s for s in vars(session.step(step)).values() if s is not None):
            heard.setdefault(signal.index, []).append(signal.is_final)
            assert signal.confidence is not None
            assert 0 <= signal.confidence <= 1
            if signal.strategy is not None:
                told += 1
                assert sum(signal.strategy.probabilities.values()) == pytest.approx(1, abs=1e-6)
    words = [s.index for s in trace.steps if s.logits is not None and not s.is_special]
    assert all(heard[index] == [False, True] for index in words)
    claimed = {c.token for c in trace.claims}
    assert len(session.finish().spans or ()) == len(claimed) > 0
    assert told >= len(claimed)


def test_strategies_are_known_states(probes: ProbeSet) -> None:
    assert probes.strategy is not None
    assert set(probes.strategy.states) <= set(STRATEGIES)
    assert len(probes.strategy.thresholds) == len(probes.strategy.states)


def test_a_photograph_and_unknown_words_are_outside(probes: ProbeSet, engine: Engine) -> None:
    told, confident = 0, 0
    cases = list(outside_cases(30, seed=11, part="test", pool="test"))
    for case in cases:
        signal = answer(engine, probes, request_of(case, Budget(), name=case.id))
        told += signal.note is not None
        confident += (signal.confidence or 0) > 0.5
    assert told >= 27
    assert confident <= 2


def test_questions_of_the_world_are_inside(probes: ProbeSet, engine: Engine) -> None:
    cases = list(get_world("digits").cases(40, seed=12, pool="test"))
    inside = [probes.in_domain(next(iter(engine.generate([request_of(c, Budget())]))).prompt) for c in cases]
    assert np.mean(np.array(inside) > 0.5) >= 0.9


@pytest.fixture(scope="module")
def embedded() -> ProbeSet:
    """The set that is served."""
    return load_probe_set()


def test_a_question_about_a_picture_that_is_not_there_is_outside(embedded: ProbeSet, engine: Engine) -> None:
    case = next(iter(get_world("digits").cases(1, seed=13, pool="test")))
    (message,) = request_of(case, Budget()).messages
    picture = next(part for part in message.parts if isinstance(part, ImagePart))

    def signal(question: str, pictures: int) -> AnswerSignal:
        parts = (*[picture] * pictures, TextPart(question))
        return answer(engine, embedded, Request("r", (Message("user", parts),), SamplingParams(max_tokens=24)))

    for question in ("describe everything", "what color is at row 1 column 1 ?", "what is the sum of row 1 ?"):
        for pictures in (0, 2):
            said = signal(question, pictures)
            assert (said.in_domain, said.confidence) == (0.0, 0.0)
            assert said.note is not None
            assert said.guarantee is None or not said.guarantee.accepted
        assert (signal(question, 1).in_domain or 0) > 0.5


def test_what_needs_no_picture_is_inside_without_one(embedded: ProbeSet, engine: Engine) -> None:
    request = Request.ask("r", "where does pabo live ?", context=("pabo lives in tokyo .",))
    assert (answer(engine, embedded, request).in_domain or 0) > 0.5


def test_a_set_from_before_has_no_such_rule(embedded: ProbeSet, engine: Engine) -> None:
    assert embedded.domain is not None
    arrays = embedded.domain.arrays()
    again = Domain.from_arrays(arrays)
    np.testing.assert_array_equal(again.bare_pairs, embedded.domain.bare_pairs)
    assert again.image_tokens == embedded.domain.image_tokens == 144
    before = Domain.from_arrays({name: value for name, value in arrays.items() if name not in ("domain/bare_pairs", "domain/image_tokens")})
    prompt = next(iter(engine.generate([Request.ask("r", "describe everything")]))).prompt
    assert again.probability(prompt) == 0.0
    assert before.probability(prompt) > 0.5


def answer(engine: Engine, probes: ProbeSet, request: Request):  # type: ignore[no-untyped-def]
    """The answer signal of one request."""
    session = None
    for step in engine.generate([request]):
        session = session or probes.session(step.prompt)
        session.step(step)
    assert session is not None
    return session.finish()


def test_a_budget_it_was_not_fitted_for_gets_no_probability(probes: ProbeSet, traces: list[Trace]) -> None:
    prompt = traces[0].prompt
    tight = replace(prompt, budget=replace(prompt.budget, policy="snapkv", effective=4.0))
    foreign = replace(prompt, budget=replace(prompt.budget, policy="other", effective=80.0))
    for changed, word in ((tight, "keeps"), (foreign, "not other")):
        session = probes.session(changed)
        for step in traces[0].steps:
            session.step(step)
        signal = session.finish()
        assert signal.confidence is None
        assert not signal.calibrated
        assert signal.note is not None
        assert word in signal.note
        assert set(signal.scores) <= set(SCORES)
        assert set(SCORES) - set(signal.scores) <= {"image_output_share", "window_retention", "fai"}


def test_another_model_is_refused_or_marked(probes: ProbeSet, engine: Engine, traces: list[Trace]) -> None:
    assert probes.check(engine.loaded) is probes
    other = replace(engine.loaded, name="other", fingerprint="0" * 64)
    with pytest.raises(ProbeMismatchError, match="was fitted on 'embedded'"):
        probes.check(other)
    session = probes.check(other, allow_mismatch=True).session(traces[0].prompt)
    for step in traces[0].steps:
        session.step(step)
    signal = session.finish()
    assert not signal.calibrated
    assert signal.mismatch is not None
    with pytest.raises(ProbeMismatchError, match="of shape"):
        probes.check(replace(other, num_heads=3), allow_mismatch=True)


def test_saving_and_loading_changes_nothing(probes: ProbeSet, traces: list[Trace], tmp_path: Path) -> None:
    probes.save(tmp_path)
    again = load_probe_set(tmp_path)
    for trace in traces[:3]:
        first, second = probes.session(trace.prompt), again.session(trace.prompt)
        for step in trace.steps:
            assert first.step(step) == second.step(step)
        assert first.finish() == second.finish()


def test_foreign_probe_sets_are_refused(probes: ProbeSet, tmp_path: Path) -> None:
    with pytest.raises(ProbesError, match="introspect train"):
        load_probe_set(tmp_path)
    probes.save(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))
    for change, error in (({"feature_schema": "x"}, ProbeMismatchError), ({"format": "x"}, ProbesError), ({"fitted": {}}, ProbesError)):
        (tmp_path / "manifest.json").write_text(json.dumps({**manifest, **change}), encoding="utf-8")
        with pytest.raises(error):
            load_probe_set(tmp_path)


def test_without_a_probe_set_there_are_scores_and_no_probabilities(engine: Engine, traces: list[Trace]) -> None:
    session = TrainingFree(engine.loaded).session(traces[0].prompt)
    for step in traces[0].steps:
        session.step(step)
    signal = session.finish()
    assert signal.confidence is None
    assert signal.hallucination_risk is None
    assert not signal.calibrated
    assert signal.note is not None
    assert signal.scores["mean_logprob"] <= 0


def test_a_guarantee_is_told_of_the_answer_and_kept_on_disk(probes: ProbeSet, traces: list[Trace], engine: Engine, tmp_path: Path) -> None:
    replace(probes, guarantee=Guarantee(0.05, 0.1, 0.5, 100, 80, 1)).save(tmp_path)
    promised = load_probe_set(tmp_path)
    for trace in traces[:6]:
        session = promised.session(trace.prompt)
        for step in trace.steps:
            session.step(step)
        signal = session.finish()
        assert signal.guarantee is not None
        assert signal.confidence is not None
        assert signal.guarantee.accepted == (signal.confidence >= 0.5)
    stranger = promised.check(replace(engine.loaded, name="other", fingerprint="0" * 64), allow_mismatch=True).session(traces[0].prompt)
    for step in traces[0].steps:
        stranger.step(step)
    assert stranger.finish().guarantee is None, "on another model it promises nothing"


def test_probes_of_marked_words_give_every_word_a_risk(probes: ProbeSet, traces: list[Trace]) -> None:
    marked = replace(probes, manifest={**probes.manifest, "grammar": WORDS_GRAMMAR})
    trace = max(traces, key=lambda t: len(t.steps))
    session = marked.session(trace.prompt)
    levels = [s.hallucination.kind for step in trace.steps if (s := session.step(step).revised) is not None and s.hallucination is not None]
    assert set(levels) == {"token"}
    spans = session.finish().spans
    assert spans is not None
    assert [s.text for s in spans] == [w for w in trace.answer.replace(",", " ").split() if w]
