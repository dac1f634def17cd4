"""The guarantee holds as often as it says, on groups drawn anew; and it says when it cannot be given."""

from __future__ import annotations

import numpy as np
import pytest

from introspect_probes.errors import FitError
from introspect_probes.guarantee import Guarantee
from introspect_probes.guarantee_fit import choose_threshold, one_of_each

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
    with pytest.raises(FitError, match="no threshold can be shown"):
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
