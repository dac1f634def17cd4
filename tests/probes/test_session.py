"""A session reads only what has a weight and keeps sums; word by word it must say what the whole feature vectors say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from introspect.types import LogitStats, PromptInfo, StepTrace
from introspect_probes.errors import ProbesError
from introspect_probes.features import Shape, token_features
from introspect_probes.grammar import WORDS_GRAMMAR, WORLD_GRAMMAR, claim_finder
from introspect_probes.linear import BudgetedPlatt, BudgetedProbe, LinearProbe, Platt
from introspect_probes.probe_set import ProbeSet, answer_features
from introspect_probes.scoring_benchmark import random_probes, random_prompt, random_row
from introspect_probes.signals import TokenSignal
from introspect_probes.traces import Trace
from introspect_probes.worlds.world import get_world


def made_answer(shape: Shape, rng: np.random.Generator, *, reduced: bool) -> list[StepTrace]:
    """Random statistics, some of them absent, for an answer that repeats a word and ends with an end token."""
    prompt = replace(random_prompt(shape, rng), question="describe everything")
    prompt.retention[0, 0] = np.nan
    if reduced:
        prompt = replace(prompt, budget=replace(prompt.budget, effective=100.0))
    texts = ["row", " 1", " column", " 2", " red", " 4", ",", " row", " 2", " column", " 1", " blue", " 4", ""]
    steps = []
    for index, text in enumerate([*texts, ""]):
        row = random_row(shape, rng)
        row.lse[0, -1] = -np.inf
        row.image_max[-1, 0] = np.nan
        if index % 3 == 1:  # a head without any entry
            for name in ("entropy", "sum_sq", "max_prob", "image_output_share", "mean_distance"):
                getattr(row, name)[-1, -1] = np.nan
            row.mass[-1, -1], row.argmax_position[-1, -1], row.retained[-1, -1] = 0, -1, 0
        top = tuple(sorted(rng.uniform(-40, 0, 3 if index % 2 else 6), reverse=True))
        logits = LogitStats(top[0], float(rng.uniform(0, 40)), float(rng.uniform(0, 5)), tuple(range(len(top))), top)
        is_end = index == len(texts)
        steps.append(
            StepTrace(
                prompt, index, 599 + index, -1 if is_end else len(text), text, text == "" and not is_end,
                None if is_end else logits, row if not is_end else None, "stop" if is_end else None,
            )
        )  # fmt: skip
    return steps


def expected(probes: ProbeSet, steps: Sequence[StepTrace], prompt: PromptInfo) -> list[TokenSignal]:
    """Final signals of every word from whole feature vectors; the last one may have no step behind it."""
    finder = claim_finder(probes.manifest["grammar"], prompt.question)
    seen, risks, kinds, said, text = [], [], [], [], ""
    in_domain = probes.in_domain(prompt)
    for index, step in enumerate(steps):
        start, text = len(text), text + step.text
        if step.logits is None or step.is_special:
            continue
        features = token_features(steps, index, steps[index + 1] if index + 1 < len(steps) else None)
        assert features is not None
        seen.append(features)
        claim = next((c for c in finder.find(text) if start <= c.start < len(text)), None)
        risk = probes.claims.risk(features, claim.kind, prompt, finder.level) if claim is not None and probes.claims is not None else None
        if claim is not None and risk is not None:
            risks.append(risk.risk)
            kinds.append(claim.kind)
        strategy = None
        if claim is not None and probes.strategy is not None:
            strategy = probes.strategy.state(probes.strategy.probabilities(features.heads))
        reduced = prompt.budget.effective < prompt.budget.prompt_tokens
        logit = probes.confidence.logits(answer_features(seen, risks, kinds, prompt), reduced)
        confidence = float(probes.confidence_calibration(logit, reduced))
        said.append(TokenSignal(index, confidence * (1.0 if in_domain is None else in_domain), risk, strategy, is_final=True))
    return said


def assert_same(ours: TokenSignal, theirs: TokenSignal) -> None:
    """Equal but for rounding."""
    assert (ours.index, ours.is_final) == (theirs.index, theirs.is_final)
    assert ours.confidence == pytest.approx(theirs.confidence, abs=1e-5)
    assert (ours.hallucination is None, ours.strategy is None) == (theirs.hallucination is None, theirs.strategy is None)
    if ours.hallucination is not None and theirs.hallucination is not None:
        for name in ("risk", "internal", "prior"):
            assert getattr(ours.hallucination, name) == pytest.approx(getattr(theirs.hallucination, name), abs=1e-5)
        assert ours.hallucination.kind == theirs.hallucination.kind
    if ours.strategy is not None and theirs.strategy is not None:
        assert ours.strategy.probabilities == pytest.approx(theirs.strategy.probabilities, abs=1e-5)
        assert (ours.strategy.label, ours.strategy.set) == (theirs.strategy.label, theirs.strategy.set)


@pytest.mark.parametrize("shape", [Shape(3, 6, 2), Shape(2, 5, 5), Shape(4, 3, 1)])
@pytest.mark.parametrize("grammar", [WORLD_GRAMMAR, WORDS_GRAMMAR])
@pytest.mark.parametrize("absent", [(), ("claims",), ("strategy",)])
def test_every_word_has_the_signals_of_the_whole_feature_vector(shape: Shape, grammar: str, absent: tuple[str, ...]) -> None:
    rng = np.random.default_rng(3)
    probes = every_weight(random_probes(shape, 60, rng), rng)
    probes = replace(probes, manifest={**probes.manifest, "grammar": grammar, "budgets": {"policies": ["full"], "min_ratio": 0.1}})
    probes = replace(probes, **dict.fromkeys(absent))
    steps = made_answer(shape, rng, reduced=shape.heads == 6)
    session = probes.session(steps[0].prompt, provisional=False)
    found = [said for step in steps if (said := session.step(step).revised) is not None]
    wanted = expected(probes, steps, steps[0].prompt)
    assert len(found) == len(wanted) == 13
    for ours, theirs in zip(found, wanted, strict=True):
        assert_same(ours, theirs)
    assert session.finish().confidence == found[-1].confidence


def every_weight(probes: ProbeSet, rng: np.random.Generator) -> ProbeSet:
    """The same with a prior that reads place, kind and budget, and with probes and calibrations that tell caches apart."""
    assert probes.claims is not None
    claims = probes.claims

    def drawn(probe: LinearProbe) -> LinearProbe:
        return replace(probe, weight=rng.normal(0, 0.3, probe.weight.shape).astype(np.float32))

    def apart(both: BudgetedProbe) -> BudgetedProbe:
        """Other weights on other features under a reduced cache."""
        return BudgetedProbe(both.whole, replace(both.whole, weight=np.roll(both.whole.weight, 7, axis=1), bias=both.whole.bias + 0.5))

    prior = BudgetedProbe(drawn(claims.prior.whole), drawn(claims.prior.reduced))
    calibration = BudgetedPlatt(Platt(-0.9, 0.2), Platt(-0.4, -0.3))
    claims = replace(claims, internal=apart(claims.internal), prior=prior, calibration=calibration)
    return replace(probes, confidence=apart(probes.confidence), claims=claims, confidence_calibration=calibration)


@pytest.mark.parametrize("last", ["with no row", "never"])
def test_a_word_without_a_reading_row_is_scored_by_the_row_that_predicted_it(last: str) -> None:
    rng = np.random.default_rng(4)
    probes = every_weight(random_probes(Shape(3, 6, 2), 60, rng), rng)
    manifest = {**probes.manifest, "grammar": WORLD_GRAMMAR, "budgets": {"policies": ["full"], "min_ratio": 0.1}}
    probes, steps = replace(probes, manifest=manifest), made_answer(Shape(3, 6, 2), rng, reduced=False)[:6]
    session = probes.session(steps[0].prompt)
    for step in steps:
        session.step(step)
    wanted = expected(probes, steps, steps[0].prompt)[-1]
    if last == "with no row":
        closing = replace(steps[-1], index=6, token_id=-1, text="", logits=None, heads=None, finish_reason="length")
        revised = session.step(closing).revised
        assert revised is not None
        assert_same(revised, wanted)
    assert session.finish().confidence == pytest.approx(wanted.confidence, abs=1e-6)


def test_what_is_said_at_first_is_what_would_be_said_without_another_step() -> None:
    rng = np.random.default_rng(5)
    probes = every_weight(random_probes(Shape(2, 4, 4), 60, rng), rng)
    manifest = {**probes.manifest, "grammar": WORLD_GRAMMAR, "budgets": {"policies": ["full"], "min_ratio": 0.1}}
    probes, steps = replace(probes, manifest=manifest), made_answer(Shape(2, 4, 4), rng, reduced=True)
    session = probes.session(steps[0].prompt)
    for count, step in enumerate(steps[:8], 1):
        early = session.step(step).current
        assert early is not None
        assert_same(replace(early, is_final=True), expected(probes, steps[:count], steps[0].prompt)[-1])


def test_so_it_is_with_the_embedded_probes_and_real_answers(probes: ProbeSet, traces: list[Trace]) -> None:
    for trace in traces[:12]:
        session = probes.session(trace.prompt, provisional=False)
        found = [said for step in trace.steps if (said := session.step(step).revised) is not None]
        wanted = expected(probes, trace.steps, trace.prompt)
        for ours, theirs in zip(found, wanted, strict=True):
            assert_same(ours, theirs)


def test_provisional_signals_change_no_final_one(probes: ProbeSet, traces: list[Trace]) -> None:
    trace = max(traces, key=lambda t: len(t.claims))
    twice, once = probes.session(trace.prompt), probes.session(trace.prompt, provisional=False)
    for step in trace.steps:
        early, late = twice.step(step), once.step(step)
        assert early.revised == late.revised
        assert late.current is None or step.is_special
    assert twice.finish() == once.finish()


@pytest.mark.parametrize("grammar", [WORLD_GRAMMAR, WORDS_GRAMMAR])
def test_claims_behind_a_place_are_found_without_reading_all_before_it(grammar: str) -> None:
    claims = 0
    for case in get_world("digits").cases(60, seed=1, pool="test"):
        finder = claim_finder(grammar, case.question)
        claims += len(finder.find(case.answers[0]))
        answer = case.answers[0]
        starts = [(text, start) for text in (answer, answer[: len(answer) // 2], answer[:-1]) for start in range(len(text))]
        for text, start in starts:
            whole = finder.find(text)
            found, wanted = finder.first_from(text, start), next((c for c in whole if c.start >= start), None)
            assert (found is None) == (wanted is None)
            if found is not None and wanted is not None:
                assert (found.start, found.end, found.kind, found.text) == (wanted.start, wanted.end, wanted.kind, wanted.text)
    assert claims > 100


def test_a_row_of_another_model_is_refused_rather_than_read_beyond_its_end() -> None:
    rng = np.random.default_rng(6)
    probes = random_probes(Shape(3, 6, 2), 60, rng)
    manifest = {**probes.manifest, "grammar": WORLD_GRAMMAR, "budgets": {"policies": ["full"], "min_ratio": 0.1}}
    steps = made_answer(Shape(3, 6, 2), rng, reduced=False)
    others = [random_row(shape, rng) for shape in (Shape(3, 5, 1), Shape(3, 6, 3), Shape(2, 6, 2))]
    whole = random_row(Shape(3, 6, 2), rng)
    others += [replace(whole, reals=whole.reals[:-1]), replace(whole, indices=whole.indices[1:])]
    others += [replace(whole, mass=whole.mass[:-1]), replace(whole, retained=whole.retained[:, :-1].copy())]
    for other in others:
        session = replace(probes, manifest=manifest).session(steps[0].prompt)
        with pytest.raises(ValueError, match="the shape that the probe set was fitted for"):
            session.step(replace(steps[0], heads=other))


def test_probes_of_another_length_are_refused() -> None:
    rng = np.random.default_rng(7)
    probes = random_probes(Shape(3, 6, 2), 60, rng)
    short = BudgetedProbe.one(replace(probes.confidence.whole, weight=probes.confidence.whole.weight[:, :-1]))
    with pytest.raises(ProbesError, match="expected a probe on"):
        replace(probes, confidence=short).prepare()
