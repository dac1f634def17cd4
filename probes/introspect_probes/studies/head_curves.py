"""Visual-head scores along training: how early does a run's final ranking of its heads stand?"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from introspect.engine import Engine
from introspect.errors import HeadScoresError
from introspect.heads.cases import Evidence, HeadCase
from introspect.heads.scoring import rank_correlation, score_heads
from introspect_probes.embedded.checkpoints import load_checkpoint_model
from introspect_probes.worlds.scene import CELL_PIXELS
from introspect_probes.worlds.world import get_world

KINDS = ("digit_at", "color_at")
"""Questions whose whole answer is to be seen in one cell."""


def head_curve(run: Path, steps: Sequence[int], n: int, work: Path, seed: int) -> list[dict[str, Any] | None]:
    """Head scores of every checkpoint of a run; `None` where no head looked at any evidence.

    Returns:
        For each step `scores` (`[layers][heads]`, sum 1), `hit_rate` of the best head, and `with_final`, the rank
        correlation over heads with the last checkpoint's scores.
    """
    folder = work / run.name
    folder.mkdir(parents=True, exist_ok=True)
    found: list[dict[str, Any] | None] = []
    for step in tqdm(steps, desc=f"{run.name}, heads", unit="checkpoint", leave=False):
        path = folder / f"heads-{seed}-{n}-{step:06d}.json"
        if not path.exists():
            path.write_text(json.dumps(_scored(run, step, n, seed)), encoding="utf-8")
        found.append(json.loads(path.read_text(encoding="utf-8")))
    last = found[-1]
    for entry in found:
        if entry is not None and last is not None:
            value = rank_correlation(np.array(entry["scores"]), np.array(last["scores"]))
            entry["with_final"] = round(value, 4) if np.isfinite(value) else None
    return found


def _scored(run: Path, step: int, n: int, seed: int) -> dict[str, Any] | None:
    try:
        heads = score_heads(Engine(load_checkpoint_model(run, step)), _cases(n, seed))
    except HeadScoresError:
        return None
    return {"scores": heads.scores.round(6).tolist(), "hit_rate": heads.facts["best_hit_rate"]}


def _cases(n: int, seed: int) -> Iterator[HeadCase]:
    for case in get_world("digits").cases(n, seed=seed, pool="probe", kinds=KINDS):
        picture = case.picture()
        if case.scene is None or picture is None:
            continue
        row, column = divmod(case.evidence[0], case.scene.columns)
        box = (column * CELL_PIXELS, row * CELL_PIXELS, (column + 1) * CELL_PIXELS, (row + 1) * CELL_PIXELS)
        yield HeadCase(case.id, picture, case.question, case.answers[0], (Evidence(0, len(case.answers[0]), (box,)),), case.context)
