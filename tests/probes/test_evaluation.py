"""The report: every baseline, control and interval says what it should on claims whose truth is planted."""

from __future__ import annotations

import weakref
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from introspect.types import Budget
from introspect_probes import claim_evaluation, evaluation, metrics, telling_cases
from introspect_probes.answer_evaluation import evaluate_answers
from introspect_probes.claim_baselines import slots
from introspect_probes.claim_evaluation import evaluate_claims, within_position_and_type
from introspect_probes.dataset import load_table
from introspect_probes.evaluation import absent_baselines, evaluate
from introspect_probes.labels import read_labelled
from introspect_probes.metrics import ClusterBootstrap
from introspect_probes.published import published_confidence, published_risks
from introspect_probes.record import record
from introspect_probes.report import summary
from introspect_probes.signals import STRATEGIES
from introspect_probes.strategy_evaluation import evaluate_strategy, macro_f1
from introspect_probes.traces import TraceWriter, read_manifest, read_traces
from introspect_probes.worlds.world import get_world

CONDITIONS = (Budget(), Budget("snapkv", ratio=0.1))


@pytest.fixture(scope="module")
def folder(engine, tmp_path_factory):
    """Answers of three pools; a claim is false where one direction of the hidden states says so, which logits do not see."""
    folder, planted = tmp_path_factory.mktemp("answers"), tmp_path_factory.mktemp("planted")
    for pool, n in (("probe", 45), ("calibration", 12), ("test", 36)):
        cases = get_world("digits").cases(n, seed=13, pool=pool, kinds=["digit_at"])
        record(cases, engine, folder, budgets=CONDITIONS, hidden=True, samples=1 if pool == "test" else 0, batch_size=64)
    traces = list(read_traces(folder))
    usual = {
        condition: float(np.median([t.hidden[c.token, 2, 5] for t in traces if t.condition == condition for c in t.claims]))
        for condition in {t.condition for t in traces}
    }
    writer = TraceWriter(planted, read_manifest(folder))
    for trace in traces:
        claims = tuple(replace(c, label=int(trace.hidden[c.token, 2, 5] > usual[trace.condition])) for c in trace.claims)
        writer.write([replace(trace, claims=claims, agreement=trace.agreement)])
    return planted


class Alive:
    """Reads traces and counts how many of them, of their head statistics and of their hidden states are held at once."""

    def __init__(self):
        self.most, self._parts = 0, []

    def read(self, folder, **how):
        for trace in read_labelled(folder, **how):
            statistics = trace.steps[0].heads.lse
            held = (trace, statistics if statistics.base is None else statistics.base, trace.hidden)
            self._parts = [refs for refs in self._parts if any(ref() is not None for ref in refs)]
            self._parts.append([weakref.ref(part) for part in held])
            self.most = max(self.most, len(self._parts))
            del held, statistics
            yield trace


@pytest.fixture(scope="module")
def alive():
    return Alive()


@pytest.fixture(scope="module")
def report(folder, probes, alive, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "read_labelled", alive.read)
        patch.setattr(claim_evaluation, "SHUFFLES", 2)
        patch.setattr(metrics, "RESAMPLES", 100)
        return evaluate(probes, [folder], tmp_path_factory.mktemp("report"))


def test_what_only_hidden_states_know_is_seen_by_the_baseline_that_reads_them(report):
    pooled = report["claims_pooled"]
    assert pooled["scores"]["L+H"][0] > pooled["scores"]["L"][0] + 0.05
    assert pooled["scores"]["L+H"][0] > 0.8
    assert pooled["probe_minus_L+H"][2] < 0
    assert "L+H" in report["answers"]["all"]["auroc"]
    assert "hidden states (L+H)" not in report["absent"]


def test_traces_are_let_go_when_they_are_read(report, folder, alive):
    assert report["answers"]["all"]["count"] > 20
    assert 1 <= alive.most <= 2, "the one just read, and the one before it until its name is given away"
    other = Alive()
    table = load_table(other.read(folder))
    assert other.most == len(table.answers), "the count sees traces that are held"


def test_pictures_are_read_for_the_cases_that_are_shown(report, folder, probes, monkeypatch):
    read = []
    real = telling_cases.read_labelled
    monkeypatch.setattr(telling_cases, "read_labelled", lambda *given, **how: (read.append(t) or t for t in real(*given, **how)))
    table = load_table(t for t in read_traces(folder) if t.pool == "test")
    light = replace(table, answers=tuple(replace(a, trace=replace(a.trace, steps=(), picture=None)) for a in table.answers))
    cases = telling_cases.telling_cases(probes, light, published_confidence(probes, table), [folder])
    assert [case.facts() for case in cases] == report["cases"]
    assert {t.id for t in read} == {case.trace.id for case in cases}
    assert all(case.trace.picture is not None and case.tokens for case in cases)


def test_baselines_of_the_design_are_there(report):
    names = set(report["claims_pooled"]["scores"])
    assert {
        "position",
        "position and repetition",
        "length",
        "question type",
        "slot",
        "budget and policy",
        "question and answer text",
    } <= names
    assert {"max probability", "mean logprob", "entropy", "VAS", "SVAR", "lookback ratio", "AttentionScore", "L", "probe"} <= names
    assert "agreement of samples" in names
    assert "agreement of samples" not in report["absent"]
    for condition in report["conditions"]:  # within one condition a score that knows only the condition is chance
        assert report["claims"][condition]["auroc"]["all"]["scores"]["budget and policy"][0] == 0.5


def test_a_class_prior_is_scored_as_a_probability(report, folder):
    traces = list(read_traces(folder))
    for condition, part in report["claims"].items():
        alike = [t for t in traces if t.pool == "probe" and (t.condition == "full") == (condition == "full")]
        prior_rate = np.mean([c.label for t in alike for c in t.claims])
        labels = np.array([c.label for t in traces if t.pool == "test" and t.condition == condition for c in t.claims])
        prior = part["calibrated_baselines"]["class prior"]
        assert prior["brier"] == pytest.approx(float(((labels - prior_rate) ** 2).mean()), abs=1e-4)
        assert part["calibrated_baselines"]["L"]["count"] == len(labels)


def test_a_baseline_is_compared_under_the_conditions_that_have_it(folder, probes, report, monkeypatch):
    monkeypatch.setattr(claim_evaluation, "SHUFFLES", 1)
    monkeypatch.setattr(metrics, "RESAMPLES", 50)
    traces = [replace(t, hidden=None if t.condition == "full" else t.hidden) for t in read_traces(folder)]
    fit, calibration, test = (load_table(t for t in traces if t.pool == pool) for pool in ("probe", "calibration", "test"))
    conditions = ["full", "snapkv@10%"]
    claims = evaluate_claims(probes.claims, fit, calibration, test, published_risks(probes, test.claims), conditions)
    whole, reduced = (claims.conditions[c]["auroc"]["all"]["scores"] for c in conditions)
    assert reduced["L+H"][0] > reduced["L"][0]
    assert {"L+H", "L+H+attention"} <= set(reduced) - set(whole) - set(claims.pooled["scores"])
    assert whole["probe"][0] == report["claims"]["full"]["auroc"]["all"]["scores"]["probe"][0]
    answers = evaluate_answers(fit, test, published_confidence(probes, test), conditions)
    assert [("probe_minus_L+H" in answers[c]) for c in conditions] == [False, True]
    absent = absent_baselines(fit, test)
    assert absent["hidden states (L+H)"].startswith("full: ")
    assert "agreement of samples" not in absent
    shown = summary({**report, "claims": claims.conditions, "claims_pooled": claims.pooled, "answers": answers})
    (line,) = (line for line in shown.splitlines() if line.startswith("| probe - L+H |"))
    assert [cell.strip() == "-" for cell in line.split("|")[2:-1]] == [True, False]


def test_the_summary_shows_them(report):
    text = summary(report)
    assert "| slot |" in text
    assert "| probe - L, two-way bootstrap |" in text
    assert "| probe - L+H |" in text
    assert "| Brier, class prior |" in text


def test_a_two_way_bootstrap_is_wider_where_the_second_grouping_matters():
    rng = np.random.default_rng(0)
    cases = np.repeat(np.arange(20), 30).astype(str)
    groups = np.arange(600).astype(str)
    shared = np.repeat(rng.normal(size=20), 30)
    labels = (shared + 0.3 * rng.normal(size=600) > 0).astype(np.int8)
    scores = shared * np.repeat(rng.choice([1, -0.2], size=20), 30)
    one = ClusterBootstrap(groups).auroc(scores, labels)[1].std()
    two = ClusterBootstrap(groups, crossed=cases).auroc(scores, labels)[1].std()
    assert two > 2 * one
    weights = ClusterBootstrap(groups, resamples=3, crossed=cases).weights(0)
    assert weights.shape == (600,)
    assert weights.min() == 0


class Rows(SimpleNamespace):
    def __len__(self):
        return len(self.label)


def test_what_place_and_type_give_away_is_gone_within_them():
    rng = np.random.default_rng(1)
    places = np.repeat(np.arange(10), 120).astype(float)
    kinds = np.tile(["a", "b"], 600)
    rate = 0.15 + 0.07 * places + 0.1 * (kinds == "b")
    truth, hidden = rng.random(1200), rng.normal(size=1200)
    labels = (truth < np.clip(rate + 0.25 * hidden, 0, 1)).astype(np.int8)
    place = np.stack([places, np.log1p(places), np.zeros(1200), places == 0], 1).astype(np.float32)
    rows = Rows(place=place, kinds=kinds, label=labels, group=np.arange(1200).astype(str))
    found = within_position_and_type({"rate": rate, "hidden": hidden}, rows)
    assert found["pairs"] >= 16
    assert found["scores"]["rate"][0] == pytest.approx(0.5, abs=0.02)
    assert found["scores"]["hidden"][0] > 0.65
    columns = slots(rows, ["a", "b"])
    assert (columns.sum(1) == 1).all()
    assert columns.shape[1] == 14


class Oracle:
    """A strategy probe that says what it is told."""

    states, thresholds = ("perceiving", "recalling"), (0.5, 0.5)

    def probabilities(self, heads):
        return heads


def strategy_rows(right, halves_agree):
    """A template with both states and one where the type gives the state away."""
    rng = np.random.default_rng(0)
    labels = np.r_[np.tile([0, 1], 60), np.zeros(80)].astype(int)
    said = np.where(rng.random(200) < right, labels, 1 - labels)
    other = np.where(rng.random(200) < halves_agree, labels, 1 - labels)
    states = np.array([STRATEGIES.index(s) for s in Oracle.states])
    answers = [SimpleNamespace(trace=SimpleNamespace(kind="mixed" if i < 120 else "plain")) for i in range(200)]

    class Claims(Rows):
        def where(self, mask):
            return Claims(**{k: v[mask] for k, v in self.__dict__.items()})

    claims = Claims(
        strategy=states[labels], halves=np.stack([states[labels], states[other]], 1), heads=np.eye(2)[said], label=labels,
        kinds=np.repeat(["a", "b"], [120, 80]), group=np.arange(200).astype(str), answer=np.arange(200),
    )  # fmt: skip
    return SimpleNamespace(claims=claims, answers=answers), labels, said, other


def test_strategy_is_scored_within_templates_over_the_labels_own_ceiling():
    table, labels, said, other = strategy_rows(right=0.8, halves_agree=0.95)
    found = evaluate_strategy(Oracle(), table)
    own = found["within_templates"]
    assert set(own["templates"]) == {"mixed"}
    expected, ceiling = macro_f1(labels[:120], said[:120]), macro_f1(labels[:120], other[:120])
    assert own["macro_f1"][0] == pytest.approx(expected, abs=1e-4)
    assert own["ceiling"][0] == pytest.approx(ceiling, abs=1e-4)
    assert own["of_ceiling"][0] == pytest.approx(expected / ceiling, abs=1e-3)
    assert own["macro_f1"][1] < expected < own["macro_f1"][2]
    assert found["singletons"] == 1
    assert found["accuracy_of_singletons"] == pytest.approx((said == labels).mean(), abs=1e-4)


def test_a_probe_that_knows_the_template_alone_fails_within_it():
    table, labels, _, _ = strategy_rows(right=1.0, halves_agree=1.0)
    table.claims.heads = np.eye(2)[np.zeros(200, dtype=int)]
    found = evaluate_strategy(Oracle(), table)
    assert found["accuracy"] == 0.7
    assert found["within_templates"]["macro_f1"][0] == pytest.approx(1 / 3, abs=1e-3)
    assert (labels[120:] == 0).all()
