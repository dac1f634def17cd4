"""The guarantee holds as often as it says, on groups drawn anew; and it says when it cannot be given."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from introspect_probes import guarantee_fit
from introspect_probes.dataset import load_table
from introspect_probes.errors import FitError
from introspect_probes.guarantee import Guarantee, caches_of
from introspect_probes.guarantee_fit import choose_threshold, needed, one_of_each

ALPHA, DELTA = 0.15, 0.1


def truth(confidence: np.ndarray) -> np.ndarray:
    """P(right) of the simulated answers: overconfident, so that the plain threshold 1 - alpha would break the promise."""
    return np.clip(confidence - 0.05, 0, 1)


def draw(groups: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Confidence, correctness and group of answers; answers of one group share picture and fate, and groups differ in size."""
    sizes = rng.integers(1, 8, groups)
    shared = 1 - rng.beta(1, 6, groups)
    fate = rng.random(groups)
    confidence = np.repeat(shared, sizes)
    return confidence, (np.repeat(fate, sizes) < truth(confidence)).astype(int), np.repeat(np.arange(groups).astype(str), sizes)


def true_risk(threshold: float) -> float:
    """Share of wrong answers over a threshold, one answer a group, from a large draw."""
    fresh = 1 - np.random.default_rng(99).beta(1, 6, 400_000)
    return float(1 - truth(fresh[fresh >= threshold]).mean())


def test_the_promise_is_kept_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    risk = {t: true_risk(t) for t in np.round(np.arange(0.01, 1, 0.01), 2)}
    reference = 1 - rng.beta(1, 6, 2000)
    broken = chosen = 0
    for seed in range(200):
        try:
            found = choose_threshold(*draw(500, rng), reference, target_risk=ALPHA, delta=DELTA, seed=seed)
        except FitError:
            continue
        chosen += 1
        broken += risk[round(found.threshold, 2)] > ALPHA
    assert chosen > 100, "a procedure that never chooses keeps every promise"
    assert broken / 200 <= DELTA + 2 * np.sqrt(DELTA * (1 - DELTA) / 200)


def test_all_rows_instead_of_one_a_group_would_break_it() -> None:
    """A positive control: repeated answers of one group taken for independent ones promise what does not hold."""
    rng = np.random.default_rng(1)
    broken = 0
    for seed in range(100):
        confidence, correct, _ = draw(60, rng)
        rows = np.repeat(np.arange(len(correct)), 8)
        names = np.arange(len(rows)).astype(str)
        try:
            found = choose_threshold(confidence[rows], correct[rows], names, confidence, target_risk=ALPHA, delta=DELTA, seed=seed)
        except FitError:
            continue
        broken += true_risk(found.threshold) > ALPHA
    assert broken / 100 > 2 * DELTA


def test_one_random_answer_of_each_group() -> None:
    groups = np.repeat(["a", "b", "c"], [5, 1, 3])
    drawn = [one_of_each(groups, seed) for seed in range(40)]
    assert all(sorted(groups[rows]) == ["a", "b", "c"] for rows in drawn)
    assert {int(rows[0]) for rows in drawn} == set(range(5))


def test_what_cannot_be_promised_is_refused_with_the_reason() -> None:
    rng = np.random.default_rng(2)
    confidence, correct, groups = draw(400, rng)
    with pytest.raises(FitError, match=r"no threshold can be shown.*more groups would not show it while as many are wrong"):
        choose_threshold(confidence, 1 - correct, groups, confidence, target_risk=ALPHA, delta=DELTA)
    with pytest.raises(FitError, match="needs at least 30 groups"):
        choose_threshold(confidence[:20], correct[:20], groups[:20], confidence, target_risk=ALPHA, delta=DELTA)
    with pytest.raises(FitError, match="between 0 and 1"):
        choose_threshold(confidence, correct, groups, confidence, target_risk=5, delta=DELTA)


def test_an_answer_at_the_threshold_is_accepted() -> None:
    guarantee = Guarantee(0.05, 0.1, 0.8, 100, 60, 1)
    assert guarantee.of(0.8).accepted
    assert not guarantee.of(0.799).accepted
    assert (guarantee.of(0.8).target_risk, guarantee.of(0.8).delta) == (0.05, 0.1)


def test_a_promise_for_one_kind_of_cache_says_nothing_of_the_other():
    whole, reduced = (Guarantee(0.05, 0.1, 0.8, 100, 60, 1, caches) for caches in ("whole", "reduced"))
    assert whole.of(0.9, is_reduced=True) is None
    assert reduced.of(0.9, is_reduced=False) is None
    assert whole.of(0.9, is_reduced=False) == reduced.of(0.9, is_reduced=True) == Guarantee(0.05, 0.1, 0.8, 100, 60, 1).of(0.9)
    assert caches_of("whole") == "whole"
    with pytest.raises(FitError, match="whole, reduced or any"):
        caches_of("some")


def test_what_would_be_needed_is_enough_and_no_more():
    """With 2 of 82 wrong, 5 % cannot be rejected; the number told is the first at which the binomial test would."""
    assert needed(0, 0, 0.05, 0.1) == 45  # .95 ** 45 is the first power under .1
    found = needed(82, 2, 0.05, 0.1)
    assert found is not None
    tail = [sum(math.comb(n, k) * 0.05**k * 0.95 ** (n - k) for k in range(math.ceil(n * 2 / 82) + 1)) for n in range(82, found + 1)]
    assert tail[-1] <= 0.1
    assert min(tail[:-1]) > 0.1
    assert needed(100, 6, 0.05, 0.1) is None
    confidence, groups = np.full(300, 0.995), np.arange(300).astype(str)
    correct = (np.arange(300) % 25 > 0).astype(int)  # 4 % wrong
    with pytest.raises(FitError, match=r"12 are wrong; if as large a share stays wrong, about [\d,]+ would do"):
        choose_threshold(confidence, correct, groups, confidence, target_risk=0.05, delta=0.1)


def test_an_answer_is_told_what_is_promised_of_its_kind_of_cache(probes, traces):
    promised = replace(probes, guarantee=Guarantee(0.05, 0.1, 0.5, 100, 80, 1, "whole"))
    told = {}
    for trace in traces:
        session = promised.session(trace.prompt)
        for step in trace.steps:
            session.step(step)
        told.setdefault(trace.condition, set()).add(session.finish().guarantee is None)
    assert told == {"full": {False}, "snapkv@20%": {True}}


def test_a_threshold_is_chosen_on_answers_of_the_promised_kind(probes, traces, monkeypatch):
    table, seen = load_table(traces), []

    def chosen(confidence, correct, groups, reference, **_):
        seen.append((len(confidence), len(reference), list(correct), list(groups)))
        return Guarantee(0.05, 0.1, 0.5, 100, 80, 1)

    monkeypatch.setattr(guarantee_fit, "choose_threshold", chosen)
    for caches, wanted in (("whole", ~table.reduced), ("reduced", table.reduced), ("any", table.reduced | True)):
        made = guarantee_fit.with_guarantee(probes, table, table, target_risk=0.05, delta=0.1, caches=caches)
        own = table.where(wanted)
        assert seen.pop() == (len(own.answers), len(own.answers), list(own.correct), list(own.groups))
        assert made.guarantee.caches == made.manifest["guarantee"]["caches"] == caches
    with pytest.raises(FitError, match="no answers under a reduced cache"):
        guarantee_fit.with_guarantee(probes, table, table.where(~table.reduced), target_risk=0.05, delta=0.1, caches="reduced")
