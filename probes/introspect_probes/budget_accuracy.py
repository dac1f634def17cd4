"""How much of its answers a model keeps under a budget, policy by policy, at equal effective budget.

Random eviction is the null that every policy must beat. Descriptions are judged
claim by claim: they are where a policy that looks at the prompt's end starves what comes later.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from introspect.engine import Engine
from introspect.policies import available_policies
from introspect.provenance import provenance
from introspect.types import Budget
from introspect_probes.metrics import RESAMPLES
from introspect_probes.record import request_of
from introspect_probes.unfinished import Unfinished
from introspect_probes.worlds.cases import Case
from introspect_probes.worlds.claims import judge
from introspect_probes.worlds.digits import Pool
from introspect_probes.worlds.questions import PICTURE_KINDS
from introspect_probes.worlds.world import get_world

RATIOS = (0.5, 0.25, 0.12, 0.06)
NULL = "random"


@dataclass(frozen=True)
class Outcome:
    """One judged answer: its scene, whether it describes everything, its claims, and what the cache kept."""

    scene: str
    describes: bool
    is_correct: bool
    claims: int
    false_claims: int
    objects: int
    missing: int
    nominal: float
    effective: float


def budget_accuracy(
    engine: Engine,
    *,
    scenes: int = 100,
    pool: Pool = "test",
    seed: int = 0,
    policies: Sequence[str] | None = None,
    ratios: Sequence[float] = RATIOS,
    full: bool = True,
    keep: Path | None = None,
) -> dict[str, Any]:
    """Answer the same cases under every policy and ratio.

    For each of `scenes` scenes one description, and as many other questions about pictures. The whole cache is the row of ratio 1.

    Args:
        engine: runs the model.
        scenes: how many.
        pool: whose handwriting.
        seed: of the cases; the budget's own seed, for random eviction, is the case's number.
        policies: names; by default all that take a budget and keep it to the entry.
        ratios: shares of the prompt's entries.
        full: whether to answer with the whole cache too.
        keep: a file for the arms that are answered already, so that an interrupted run goes on.

    Returns:
        A benchmark row. Each entry of `rows` has `policy`, `ratio`, `nominal` and `effective` (mean entries per KV head), and
        `[value, low, high]` for `false_rate` (false claims among the claims of descriptions), `missing_rate` (objects of the
        scene that a description leaves out), `wrong` (false claims and objects left out, of claims and objects together, for a
        policy must not win by saying little), `exact` (descriptions right as a whole) and `exact_other` (other questions),
        intervals from a bootstrap over scenes. `against_random` and `wrong_against_random` are the false rate and `wrong` less
        random eviction's, paired by scene.
    """
    chosen = tuple(policies or (p for p in available_policies() if p != "full" and not p.endswith("-paper")))
    cases = _cases(scenes, pool, seed)
    so_far = Unfinished(keep, {"scenes": scenes, "pool": pool, "seed": seed, "model": engine.loaded.fingerprint})
    arms = [*([("full", 1.0)] if full else []), *((policy, ratio) for ratio in ratios for policy in chosen)]
    results = {
        arm: [Outcome(**found) for found in so_far.part(f"{arm[0]} {arm[1]}", lambda: _answer(engine, cases, *arm))]  # noqa: B023 - at once
        for arm in arms
    }
    draws = np.random.default_rng([seed, 43]).multinomial(scenes, np.full(scenes, 1 / scenes), size=RESAMPLES)
    return {
        "benchmark": "engine accuracy",
        "provenance": provenance(),
        "model": engine.loaded.fingerprint,
        "cases": {"scenes": scenes, "descriptions": scenes, "other_questions": len(cases) - scenes, "pool": pool, "seed": seed},
        "policies": list(chosen),
        "rows": [_row(policy, ratio, found, results.get((NULL, ratio)), draws) for (policy, ratio), found in results.items()],
    }


def _cases(scenes: int, pool: Pool, seed: int) -> list[Case]:
    """A description of each scene, then one question about each of as many other scenes."""
    world = get_world("digits")
    others = tuple(kind for kind in PICTURE_KINDS if kind != "describe")
    described = world.cases(scenes, seed=seed, pool=pool, kinds=("describe",))
    return [*described, *world.cases(scenes, seed=seed + 1, pool=pool, kinds=others)]


def _answer(engine: Engine, cases: Sequence[Case], policy: str, ratio: float) -> list[dict[str, Any]]:
    """Each case's `Outcome`, as a dictionary."""
    budgets = [Budget() if policy == "full" else Budget(policy, ratio=ratio, seed=i) for i in range(len(cases))]
    text: dict[str, str] = defaultdict(str)
    kept: dict[str, tuple[float, float]] = {}
    for step in engine.generate([request_of(case, b, name=str(i)) for i, (case, b) in enumerate(zip(cases, budgets, strict=True))]):
        text[step.prompt.request_id] += step.text
        kept[step.prompt.request_id] = (step.prompt.budget.nominal, step.prompt.budget.effective)
    return [asdict(_judged(case, text[str(i)], kept[str(i)])) for i, case in enumerate(cases)]


def _judged(case: Case, text: str, kept: tuple[float, float]) -> Outcome:
    judgement = judge(case, text)
    objects = [cell for cell in case.scene.cells if cell is not None] if case.scene is not None else []
    placed = {claim.evidence for claim in judgement.claims if claim.kind == "place" and not claim.is_false}
    return Outcome(
        scene=case.id,
        describes=case.kind == "describe",
        is_correct=judgement.is_correct,
        claims=len(judgement.claims),
        false_claims=sum(claim.is_false for claim in judgement.claims),
        objects=len(objects),
        missing=len(objects) - len(placed),
        nominal=kept[0],
        effective=kept[1],
    )


def _row(policy: str, ratio: float, found: Sequence[Outcome], null: Sequence[Outcome] | None, draws: NDArray[np.int64]) -> dict[str, Any]:
    long = [o for o in found if o.describes]
    short = [o for o in found if not o.describes]
    row: dict[str, Any] = {
        "policy": policy,
        "ratio": ratio,
        "nominal": round(float(np.mean([o.nominal for o in found])), 4),
        "effective": round(float(np.mean([o.effective for o in found])), 4),
        "false_rate": _interval(*_false(long), draws),
        "missing_rate": _interval(_column(long, "missing"), _column(long, "objects"), draws),
        "wrong": _interval(*_wrong(long), draws),
        "exact": _interval(_column(long, "is_correct"), np.ones(len(long)), draws),
        "exact_other": _interval(_column(short, "is_correct"), np.ones(len(short)), draws),
    }
    if null is not None and policy != NULL:
        other = [o for o in null if o.describes]
        row["against_random"] = _difference(_false(long), _false(other), draws)
        row["wrong_against_random"] = _difference(_wrong(long), _wrong(other), draws)
    return row


def _false(long: Sequence[Outcome]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return _column(long, "false_claims"), _column(long, "claims")


def _wrong(long: Sequence[Outcome]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return _column(long, "false_claims") + _column(long, "missing"), _column(long, "claims") + _column(long, "objects")


def _difference(
    ours: tuple[NDArray[np.float64], NDArray[np.float64]], theirs: tuple[NDArray[np.float64], NDArray[np.float64]], draws: NDArray[np.int64]
) -> list[float]:
    value = _share(*ours) - _share(*theirs)
    return _rounded(value, _resampled(*ours, draws) - _resampled(*theirs, draws))


def _share(counts: NDArray[np.float64], of: NDArray[np.float64]) -> float:
    return float(counts.sum() / max(of.sum(), 1))


def _column(outcomes: Sequence[Outcome], name: str) -> NDArray[np.float64]:
    return np.array([getattr(outcome, name) for outcome in outcomes], dtype=np.float64)


def _resampled(counts: NDArray[np.float64], of: NDArray[np.float64], draws: NDArray[np.int64]) -> NDArray[np.float64]:
    """The ratio of two sums over scenes, for each draw of scenes (`[resamples, scenes]`, how often each is drawn)."""
    return (draws @ counts) / np.maximum(draws @ of, 1)


def _interval(counts: NDArray[np.float64], of: NDArray[np.float64], draws: NDArray[np.int64]) -> list[float]:
    return _rounded(_share(counts, of), _resampled(counts, of, draws))


def _rounded(value: float, resampled: NDArray[np.float64]) -> list[float]:
    """Value and 95 % percentile interval."""
    low, high = np.quantile(resampled, (0.025, 0.975))
    return [round(float(x), 4) for x in (value, low, high)]
