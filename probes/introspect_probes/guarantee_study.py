"""How often a guarantee is broken when pools are drawn anew: `python -m introspect_probes.guarantee_study --traces DIR --out FILE`.

From recorded answers that no probe was fitted or calibrated on, units are drawn to calibrate on: digit images, or runs of
neighbouring images, which are of one writer or two. The threshold is chosen on the drawn ones as `introspect train` does, and what
becomes of it is counted on the others, so that answers about one image are never on both sides.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from scipy.stats import binomtest

from introspect.provenance import provenance
from introspect_probes.dataset import TableBuilder
from introspect_probes.errors import FitError, TraceError
from introspect_probes.guarantee_fit import GRID, choose_threshold, one_of_each
from introspect_probes.labels import read_labelled
from introspect_probes.parts import OUTSIDE_KIND, is_promised, part_of
from introspect_probes.probe_set import ProbeSet, load_probe_set
from introspect_probes.published import published_confidence
from introspect_probes.token_store import TokenStore

Floats = NDArray[np.floating]
REDRAWS = 1000
RUN = 40
"""Neighbouring digit images that stay together; a writer wrote about as many."""
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
        "answers": len(own), "groups": len(names), "drawn": groups, "redraws": redraws, "refused": redraws - len(found),
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


def guarantee_study(
    probes: ProbeSet, folders: Sequence[Path], *, target_risks: Sequence[float] = (0.05, 0.1), delta: float = 0.1, redraws: int = REDRAWS
) -> dict[str, Any]:
    """Redraw pools on traces.

    Args:
        probes: whose confidence is promised.
        folders: the traces it was fitted on, and those of the test part.
        target_risks: promises to check.
        delta: chance of a wrong choice that is promised.
        redraws: for each figure.

    Returns:
        A benchmark row with one case for each promise, mix of conditions and way of drawing.

    Raises:
        TraceError: no answers are left that no probe was fitted or calibrated on, or none for the reference.
    """
    answers, reference = judged(probes, folders)
    mixes: dict[str, Callable[[NDArray[np.str_]], NDArray[np.bool_]]] = {
        "every condition": lambda conditions: np.ones(len(conditions), dtype=np.bool_),
        "the whole cache": lambda conditions: conditions == "full",
    }
    cases = []
    for target_risk in target_risks:
        facts = {"target_risk": target_risk, "delta": delta}
        for mix, inside in mixes.items():
            own, usual = answers.where(inside(answers.conditions)), reference.where(inside(reference.conditions)).confidence
            named = {**facts, "conditions": mix}
            for drawn, run in (("digit images", 1), ("runs of images", RUN)):
                for rule in RULES:
                    result = redraw(own, units_of(own.groups, run), usual, target_risk=target_risk, delta=delta, rule=rule, redraws=redraws)
                    cases.append({**named, "drawn": drawn, "rule": rule, **result})
            groups = len(np.unique(own.groups)) // 2
            result = draw_again(own, usual, target_risk=target_risk, delta=delta, groups=groups, redraws=redraws)
            cases.append({**named, "drawn": "groups, with replacement", "rule": RULES[0], **result})
    return {"benchmark": "guarantee", "provenance": provenance(), "probe_set": probes.name, "run": RUN, "cases": cases}


def judged(probes: ProbeSet, folders: Sequence[Path]) -> tuple[Judged, Judged]:
    """Answers that nothing was fitted or calibrated on, and those of the fit, of which only the confidence is used.

    Raises:
        TraceError: there are none of either.
    """
    with TokenStore() as store:
        held, fitted = TableBuilder(store), TableBuilder(store)
        for trace in chain.from_iterable(read_labelled(folder) for folder in folders):
            if trace.kind == OUTSIDE_KIND:
                continue
            part = part_of(trace)
            if part == "fit":
                fitted.add(trace)
            elif part == "test" or is_promised(trace):
                held.add(trace)
        tables = held.table(), fitted.table()
        if not all(table.answers for table in tables):
            raise TraceError("expected answers of the fit part, and of the calibration or the test part; give the folders of all")
        ours, theirs = (Judged(published_confidence(probes, t), t.correct, t.groups, t.conditions) for t in tables)
    return ours, theirs


def main(
    *,
    probes: Annotated[str, typer.Option(help="The folder of a probe set, or embedded.")] = "embedded",
    traces: Annotated[list[Path], typer.Option(help="A folder of traces; may be given again.")],
    out: Annotated[Path, typer.Option(help="Where to write the JSON row.")],
    redraws: int = REDRAWS,
) -> None:
    """Count how often a guarantee is broken when its pools are drawn anew, and write the row."""
    row = guarantee_study(load_probe_set(probes), traces, redraws=redraws)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
    typer.echo(json.dumps(row))


if __name__ == "__main__":
    typer.run(main)
