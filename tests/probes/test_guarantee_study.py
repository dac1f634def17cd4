"""Pools drawn anew: who is on which side, what counts as broken, and a rule that must break."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from introspect_probes import guarantee_study, pool_redraws
from introspect_probes.guarantee import Guarantee
from introspect_probes.guarantee_table import guarantee_table
from introspect_probes.pool_redraws import RULES, Judged, broken, draw_again, redraw, units_of

ALPHA, DELTA = 0.1, 0.1


def answers(images: int, rng: np.random.Generator) -> Judged:
    """One to five answers about each image, right as often as they are confident; and some about whole scenes."""
    sizes = rng.integers(1, 6, images)
    groups = np.repeat([f"digit-{i}" for i in range(images)], sizes).astype("U20")
    confidence = rng.beta(5, 1, len(groups))
    groups[::9] = [f"scene-test-1-{i}" for i in range(len(groups[::9]))]
    return Judged(confidence, (rng.random(len(groups)) < confidence).astype(np.int8), groups, np.full(len(groups), "full"))


def test_units_are_images_runs_of_them_or_persons_and_scenes_have_none():
    groups = np.array(["digit-79", "digit-80", "scene-test-1-4", "fact-ada"])
    assert units_of(groups, 1).tolist() == ["run-79", "run-80", "", "fact-ada"]
    assert units_of(groups, 40).tolist() == ["run-1", "run-2", "", "fact-ada"]


@pytest.mark.parametrize("run", [1, 7])
def test_no_image_is_on_both_sides(monkeypatch, run):
    own, sides = answers(60, np.random.default_rng(0)), []

    def chosen(*given, **_):
        sides.append(set(units_of(given[2], run).tolist()))
        return Guarantee(ALPHA, DELTA, 0.5, 1, 1, 0)

    real = Judged.risk

    def risk(self, threshold):
        sides.append(set(units_of(self.groups, run).tolist()))
        return real(self, threshold)

    monkeypatch.setattr(pool_redraws, "choose_threshold", chosen)
    monkeypatch.setattr(Judged, "risk", risk)
    found = redraw(own, units_of(own.groups, run), own.confidence, target_risk=ALPHA, delta=DELTA, redraws=5)
    every = set(units_of(own.groups, run).tolist()) - {""}
    assert len(sides) == 10
    for drawn, others in zip(sides[::2], sides[1::2], strict=True):
        assert drawn | others == every
        assert not drawn & others
        assert len(drawn) == len(every) // 2
    assert len({frozenset(s) for s in sides[::2]}) == 5, "drawn anew each time"
    assert found["answers"] == (units_of(own.groups, run) != "").sum()


def test_the_promise_is_kept_and_the_rule_without_a_test_breaks():
    own = answers(600, np.random.default_rng(1))
    facts = {"target_risk": ALPHA, "delta": DELTA, "redraws": 60}
    kept, naive = (redraw(own, units_of(own.groups, 1), own.confidence, rule=rule, **facts) for rule in RULES)
    assert kept["refused"] < 30
    assert kept["share_broken"][0] <= 0.2
    assert naive["share_broken"][0] > max(0.3, 2 * kept["share_broken"][0])
    assert naive["excess_where_broken"] > 0
    again = draw_again(own, own.confidence, groups=400, **facts)
    assert again["share_broken"][0] <= DELTA + 2 * np.sqrt(DELTA * (1 - DELTA) / 60)
    assert again["groups_drawn"] == 400


def test_every_group_weighs_the_same():
    one = Judged(np.array([0.9] * 4), np.array([0, 0, 0, 1], dtype=np.int8), np.array(["a", "a", "a", "b"]), np.full(4, "full"))
    assert one.risk(0.5) == pytest.approx(0.5)
    assert np.isnan(one.risk(0.95))


def test_what_is_refused_breaks_nothing():
    found = broken(np.array([0.2, 0.05]), ALPHA, 10)
    assert (found["broken"], found["share_broken"][0]) == (1, 0.1)
    assert found["share_broken"][1] < 0.1 < found["share_broken"][2]
    assert found["excess_where_broken"] == pytest.approx(0.1)


def test_the_table_says_whether_the_promise_was_kept():
    facts = {"target_risk": 0.05, "delta": 0.1, "conditions": "the whole cache", "redraws": 50, "refused": 1, "units": 30, "groups": 40}
    medians = {"median_threshold": 0.9, "median_accepted": 0.6, "median_risk": 0.03, "excess_where_broken": 0.01}
    cases = [
        {**facts, **medians, "drawn": "digit images", "rule": rule, "broken": count, "share_broken": [count / 50, 0.0, 0.5]}
        for rule, count in zip(RULES, (2, 30), strict=True)
    ]
    cases.append({**facts, "drawn": "runs of images", "rule": RULES[0], "broken": 0, "share_broken": [0.0, 0.0, 0.1], "refused": 50}
                 | dict.fromkeys(medians))  # fmt: skip
    text = guarantee_table({"probe_set": "some-1", "run": 40, "cases": cases})
    kept, naive, none = (line for line in text.splitlines() if line.startswith("| 5%"))
    assert "| 4.0% [0.0%, 50.0%] |" in kept
    assert "| 60.0% [0.0%, 50.0%] |" in naive
    assert none.count("| - ") == 3


def test_a_row_holds_every_promise_mix_and_way_of_drawing(monkeypatch):
    own = answers(80, np.random.default_rng(2))
    monkeypatch.setattr(guarantee_study, "judged", lambda *_: (own, own))
    row = guarantee_study.guarantee_study(SimpleNamespace(name="some-1"), [], redraws=2)
    assert len({(c["target_risk"], c["conditions"], c["drawn"], c["rule"]) for c in row["cases"]}) == len(row["cases"]) == 20
    assert guarantee_table(row).count("| groups, with replacement |") == 4
