"""Digit pools drawn anew: how often a threshold chosen on one side breaks its promise on the other.

Units are drawn, digit images or runs of neighbouring ones, which are of one writer or two, so that answers about one image are
never on both sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from introspect_probes.errors import FitError
from introspect_probes.guarantee_fit import GRID, choose_threshold, one_of_each

Floats = NDArray[np.floating]
REDRAWS = 1000
RUN = 40
"""Neighbouring digit images that stay together: fewer than a writer wrote on average, so that a run is mostly of one or two."""
RULES = ("learn then test", "error on the drawn side")
"""The guarantee's, and the control that must break: the smallest threshold over which few enough of the drawn answers are wrong."""


@dataclass(frozen=True)
class Judged:
    """Answers with their published confidence, whether they are right, their group, and their condition."""

    confidence: Floats
    correct: NDArray[np.int8]
    groups: NDArray[np.str_]
    conditions: NDArray[np.str_]

    def where(self, mask: NDArray[np.bool_]) -> Judged:
        """The answers of a mask."""
        return Judged(*(getattr(self, name)[mask] for name in self.__dataclass_fields__))

    def risk(self, threshold: float) -> float:
        """Share of wrong answers among those with at least this confidence, every group with equal weight; NaN where there are none."""
        _, own, sizes = np.unique(self.groups, return_inverse=True, return_counts=True)
        weights = (self.confidence >= threshold) / sizes[own]
        return float((weights * (self.correct == 0)).sum() / weights.sum()) if weights.any() else float("nan")


def units_of(groups: NDArray[np.str_], run: int) -> NDArray[np.str_]:
    """What is drawn together: the group, or the run of `run` neighbouring images that a digit image belongs to.

    Questions about several digits (groups named after scenes) share images with others, so no draw gives them a side: theirs is empty.
    """
    return np.array([_unit(group, run) for group in groups.tolist()], dtype=np.str_)


def _unit(group: str, run: int) -> str:
    if group.startswith("scene-"):
        return ""
    return f"run-{int(group.removeprefix('digit-')) // run}" if group.startswith("digit-") else group


def redraw(
    answers: Judged,
    units: NDArray[np.str_],
    reference: Floats,
    *,
    target_risk: float,
    delta: float,
    rule: str = RULES[0],
    redraws: int = REDRAWS,
    seed: int = 0,
) -> dict[str, Any]:
    """Draw half of the units again and again, choose a threshold on their answers, and count it on the answers of the others.

    Returns:
        `refused`: draws in which no threshold was given, which break nothing; `broken`: draws in which more than `target_risk` of the
        accepted answers of the other side were wrong, with their share of all draws and its binomial interval (95 %, of the redrawing
        alone: the answers are the same throughout); `excess_where_broken`: by how much, on average; medians of threshold, accepted
        share and risk on the other side.
    """
    kept = units != ""
    answers, units = answers.where(kept), units[kept]
    names = np.unique(units)
    rng = np.random.default_rng(seed)
    found: list[tuple[float, float, float]] = []
    for number in range(redraws):
        drawn = np.isin(units, rng.permutation(names)[: len(names) // 2])
        threshold = _chosen(answers.where(drawn), reference, target_risk, delta, rule, number)
        if threshold is None:
            continue
        others = answers.where(~drawn)
        risk = others.risk(threshold)
        if np.isfinite(risk):
            found.append((threshold, float((others.confidence >= threshold).mean()), risk))
    return {
        "answers": len(units), "groups": len(np.unique(answers.groups)), "units": len(names), "redraws": redraws,
        "refused": redraws - len(found), **broken(np.array([risk for *_, risk in found]), target_risk, redraws),
        **_medians(found),
    }  # fmt: skip


def draw_again(
    answers: Judged, reference: Floats, *, target_risk: float, delta: float, groups: int, redraws: int = REDRAWS, seed: int = 0
) -> dict[str, Any]:
    """Draw groups with replacement from all that were recorded, so that the risk over a threshold is known and not estimated.

    This is the promise as it is stated, on the groups that `introspect train` itself takes for independent; see `redraw`.
    """
    rng = np.random.default_rng(seed)
    names, own = np.unique(answers.groups, return_inverse=True)
    rows = [np.flatnonzero(own == i) for i in range(len(names))]
    risks = {round(float(t), 2): answers.risk(float(t)) for t in GRID}
    found: list[tuple[float, float, float]] = []
    for _ in range(redraws):
        one = answers_at(answers, np.array([rng.choice(rows[i]) for i in rng.integers(0, len(names), groups)]))
        threshold = _chosen(one, reference, target_risk, delta, RULES[0], 0)
        if threshold is not None:
            found.append((threshold, float((answers.confidence >= threshold).mean()), risks[round(threshold, 2)]))
    return {
        "answers": len(own), "groups": len(names), "groups_drawn": groups, "redraws": redraws, "refused": redraws - len(found),
        **broken(np.array([risk for *_, risk in found]), target_risk, redraws), **_medians(found),
    }  # fmt: skip


def answers_at(answers: Judged, rows: NDArray[np.int64]) -> Judged:
    """These answers, each a group of its own."""
    return Judged(answers.confidence[rows], answers.correct[rows], np.arange(len(rows)).astype(str), answers.conditions[rows])


def _chosen(answers: Judged, reference: Floats, target_risk: float, delta: float, rule: str, seed: int) -> float | None:
    if rule == RULES[0]:
        try:
            own = choose_threshold(
                answers.confidence, answers.correct, answers.groups, reference, target_risk=target_risk, delta=delta, seed=seed
            )
        except FitError:
            return None
        return own.threshold
    one = answers_at(answers, one_of_each(answers.groups, seed))
    fitting = [float(t) for t in GRID if one.risk(float(t)) <= target_risk]
    return min(fitting, default=None)


def broken(risks: Floats, target_risk: float, redraws: int) -> dict[str, Any]:
    """How many of the thresholds' risks exceed the target, as a share of all redraws with its binomial interval."""
    count = int((risks > target_risk).sum())
    span = binomtest(count, redraws).proportion_ci()
    excess = float((risks[risks > target_risk] - target_risk).mean()) if count else 0.0
    return {
        "broken": count,
        "share_broken": [round(count / redraws, 4), round(float(span.low), 4), round(float(span.high), 4)],
        "excess_where_broken": round(excess, 4),
    }


def _medians(found: Sequence[tuple[float, float, float]]) -> dict[str, float | None]:
    names = ("threshold", "accepted", "risk")
    return {f"median_{name}": round(float(np.median([f[i] for f in found])), 4) if found else None for i, name in enumerate(names)}
