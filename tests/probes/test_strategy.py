"""The strategy probe: which states it has, what each may read, and what its score leaves out."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from introspect_probes.dataset import Claims, empty_claims
from introspect_probes.report import strategy_lines
from introspect_probes.signals import STRATEGIES
from introspect_probes.strategy_evaluation import evaluate_strategy
from introspect_probes.strategy_fit import MIN_HELD, MIN_STATES, fit_strategy, strategy_states

FEATURES = 24


def table(**known: np.ndarray) -> Claims:
    """Claims of which only this is known; the rest is nought."""
    none, count = empty_claims().__dict__, len(known["strategy"])
    return Claims(**{name: known.get(name, np.zeros((count, *own.shape[1:]), dtype=own.dtype)) for name, own in none.items()})


def claims_of(counts: dict[str, int], seed: int, faint: str | None = None) -> Claims:
    """Claims with so many of each state: one feature tells each state but the `faint` one, which many tell a little."""
    rng = np.random.default_rng(seed)
    states = np.repeat([STRATEGIES.index(name) for name in counts], list(counts.values())).astype(np.int8)
    heads = rng.standard_normal((len(states), FEATURES)).astype(np.float32)
    for name in counts:
        own, index = states == STRATEGIES.index(name), STRATEGIES.index(name)
        if name == faint:
            heads[np.ix_(own, np.arange(len(STRATEGIES), FEATURES))] += 0.6
        else:
            heads[own, index] += 4
    groups = np.array([f"{seed}-{i // 2}" for i in range(len(states))])
    return table(heads=heads, strategy=states, group=groups)


def test_a_state_needs_claims_to_fit_on_and_enough_to_calibrate_a_threshold_of_its_own():
    held = claims_of({"perceiving": 50, "reading": MIN_HELD, "recalling": MIN_HELD - 1, "guessing": 50}, seed=1)
    fit = claims_of({"perceiving": 50, "reading": MIN_STATES, "recalling": 50, "guessing": MIN_STATES - 1}, seed=0)
    assert [STRATEGIES[s] for s in strategy_states(fit, held)] == ["perceiving", "reading"]
    probe = fit_strategy(fit, held)
    assert probe.states == ("perceiving", "reading")
    assert min(probe.thresholds) > 0  # with fewer held claims a state would always stay in the set


def test_a_state_told_by_many_heads_a_little_is_found_beside_states_that_one_head_tells():
    counts = {"perceiving": 150, "reading": 40, "recalling": 40, "guessing": 40}
    fit, held, fresh = (claims_of(counts, seed, faint="guessing") for seed in (2, 3, 4))
    probe = fit_strategy(fit, held)
    used = np.flatnonzero(np.abs(probe.probe.weight[probe.states.index("guessing")]) > 0.01)
    assert (used >= len(STRATEGIES)).sum() >= 12  # of the 19 that tell it
    said = np.array(probe.states)[probe.probabilities(fresh.heads).argmax(1)]
    truth = np.array([STRATEGIES[s] for s in fresh.strategy])
    for name, least in (("perceiving", 0.95), ("reading", 0.9), ("guessing", 0.8)):
        assert (said[truth == name] == name).mean() > least


def test_what_was_learnt_by_heart_shows_in_the_score_without_the_groups_that_the_fit_met():
    """Of people that the fit met it knows the state; of others it says the commonest."""
    rng = np.random.default_rng(5)
    states = np.tile([STRATEGIES.index("recalling"), STRATEGIES.index("guessing")], 100).astype(np.int8)
    met = rng.random(200) < 0.5
    said = np.where(met, states == STRATEGIES.index("guessing"), 0)
    groups = np.array([f"{'met' if known else 'new'}-{i}" for i, known in enumerate(met)])
    claims = table(
        heads=np.eye(2, dtype=np.float32)[said], strategy=states, group=groups, halves=np.stack([states, states], 1),
        kinds=np.repeat("fact", 200), answer=np.arange(200),
    )  # fmt: skip
    answers = [SimpleNamespace(trace=SimpleNamespace(kind="fact"))] * 200
    probe = SimpleNamespace(states=("recalling", "guessing"), thresholds=(0.5, 0.5), probabilities=lambda heads: heads)
    found = evaluate_strategy(probe, SimpleNamespace(claims=claims, answers=answers), set(groups[met].tolist()))
    every, unmet = found["within_templates"], found["within_templates_unmet"]
    assert unmet["templates"]["fact"]["claims"] == (~met).sum()
    assert unmet["macro_f1"][0] == pytest.approx(1 / 3, abs=0.02)
    assert every["macro_f1"][0] > unmet["macro_f1"][0] + 0.3
    own = unmet["templates"]["fact"]
    assert own["ceiling"] == 1
    assert own["states"]["guessing"] == {"claims": int((~met & (states == STRATEGIES.index("guessing"))).sum()), "f1": 0.0}
    assert own["macro_f1"] == pytest.approx(np.mean([s["f1"] for s in own["states"].values()]), abs=1e-4)
    lines = strategy_lines({"strategy": found})
    assert f"that the fit met, macro-F1 {unmet['macro_f1'][0]:.3f}" in lines
    assert "guessing 0.00 of" in lines
