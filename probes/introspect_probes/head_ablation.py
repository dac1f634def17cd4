"""Are visual heads causal? Silence the top ones and see what breaks: questions about the picture, or learned facts.

Silenced heads add nothing to the residual stream, in prefill and decode. The null
is as many heads drawn at random among the others, several draws. Accuracy is exact match of greedy answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from introspect.attention import ablated
from introspect.engine import Engine
from introspect.heads.visual_heads import VisualHeads
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

STEPS = (1, 2, 4, 6, 8, 12)
DRAWS = 5
Floats = NDArray[np.float64]


def head_ablation(
    engine: Engine,
    heads: VisualHeads,
    *,
    n: int = 200,
    pool: Pool = "test",
    seed: int = 0,
    steps: Sequence[int] = STEPS,
    keep: Path | None = None,
) -> dict[str, Any]:
    """Accuracy on `n` picture questions and `n` taught facts, by the number of silenced heads.

    Args:
        engine: runs the model.
        heads: its scores.
        n: cases of each sort.
        pool: whose handwriting.
        seed: of cases, random heads and bootstrap draws.
        steps: how many heads to silence.
        keep: a file for what is answered already, so that an interrupted run goes on.

    Returns:
        A benchmark row; each entry of `rows` has `heads` (`none`, `visual`, `random`), `silenced`, and `[value, low, high]` for
        `picture` and `facts`, the intervals from a bootstrap over cases (and over draws of heads).
        `drop_visual_minus_random` holds, per number of heads, how much more accuracy the visual ones cost.
    """
    layers, width = heads.scores.shape
    order = np.argsort(-heads.scores, axis=None, kind="stable")
    cases = {
        "picture": list(get_world("digits").cases(n, seed=seed, pool=pool, kinds=tuple(PICTURE_KINDS))),
        "facts": [c for c in get_world("digits").cases(8 * n, seed=seed, pool=pool, kinds=("fact",)) if c.scene is None][:n],
    }
    rng = np.random.default_rng([seed, 41])
    so_far = Unfinished(keep, {"n": n, "pool": pool, "seed": seed, "model": engine.loaded.fingerprint, "heads": heads.scores.tolist()})

    def answers(sort: str, masks: Sequence[torch.Tensor]) -> Floats:
        rows = [
            so_far.part(f"{sort} {mask.nonzero().tolist()}", lambda: right_answers(engine, cases[sort], mask).tolist())  # noqa: B023
            for mask in masks
        ]
        return np.array(rows)

    intact = {sort: answers(sort, [_mask(order[:0], layers, width)]) for sort in cases}
    rows = [_row("none", 0, intact, seed)]
    extra: dict[str, dict[str, list[float]]] = {}
    for k in steps:
        top = _mask(order[:k], layers, width)
        others = [_mask(rng.choice(order[k:], k, replace=False), layers, width) for _ in range(DRAWS)]
        visual = {sort: answers(sort, [top]) for sort in cases}
        random = {sort: answers(sort, others) for sort in cases}
        rows += [_row("visual", k, visual, seed), _row("random", k, random, seed)]
        extra[str(k)] = {sort: _interval(random[sort], seed, minus=visual[sort]) for sort in cases}
    return {
        "benchmark": "visual-head ablation",
        "provenance": provenance(),
        "model": engine.loaded.fingerprint,
        "cases": {**{sort: len(some) for sort, some in cases.items()}, "pool": pool, "seed": seed},
        "heads_in_all": layers * width,
        "random_draws": DRAWS,
        "top": [[int(h) // width, int(h) % width] for h in order[: max(steps)]],
        "rows": rows,
        "drop_visual_minus_random": extra,
    }


def right_answers(engine: Engine, cases: Sequence[Case], silenced: torch.Tensor) -> Floats:
    """1 for each case whose greedy answer is right with some heads silenced (`bool [layers, heads]`), else 0."""
    text: dict[str, str] = {}
    with ablated(silenced):
        for step in engine.generate([request_of(case, Budget(), name=str(i)) for i, case in enumerate(cases)]):
            text[step.prompt.request_id] = text.get(step.prompt.request_id, "") + step.text
    return np.array([judge(case, text[str(i)]).is_correct for i, case in enumerate(cases)], dtype=np.float64)


def _mask(heads: NDArray[np.integer], layers: int, width: int) -> torch.Tensor:
    mask = torch.zeros(layers * width, dtype=torch.bool)
    mask[torch.from_numpy(np.asarray(heads, dtype=np.int64))] = True
    return mask.view(layers, width)


def _row(name: str, silenced: int, right: dict[str, Floats], seed: int) -> dict[str, Any]:
    return {"heads": name, "silenced": silenced, **{sort: _interval(values, seed) for sort, values in right.items()}}


def _interval(right: Floats, seed: int, minus: Floats | None = None) -> list[float]:
    """Mean of `[draws, cases]` (less that of `minus`) with its 95 % interval; draws and cases are resampled, cases in pairs."""
    rng = np.random.default_rng([seed, 42])
    cases = right.shape[1]
    draws = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        columns = rng.integers(cases, size=cases)
        draws[i] = right[rng.integers(len(right), size=len(right))][:, columns].mean()
        if minus is not None:
            draws[i] -= minus[:, columns].mean()
    value = right.mean() - (minus.mean() if minus is not None else 0.0)
    low, high = np.quantile(draws, (0.025, 0.975))
    return [round(float(x), 4) for x in (value, low, high)]
