"""Visual-head scores along training: when do heads begin to look, how many, in which layers, and how early does their ranking stand?

Every checkpoint of a run is asked for digits and colours in a named cell, and its heads are scored by the same
questions. Runs of any seed, size and family can be given; each has a result file of its own. The null is the run's
own untrained weights.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from introspect.engine import Engine
from introspect.errors import HeadScoresError
from introspect.heads.cases import Evidence, HeadCase
from introspect.heads.scoring import rank_correlation, score_heads
from introspect.loading import load_model
from introspect.provenance import provenance
from introspect_probes.embedded.checkpoints import checkpoint_steps, load_checkpoint_model
from introspect_probes.errors import ProbesError
from introspect_probes.studies.filed import file_result, filed
from introspect_probes.studies.learning_rows import ask
from introspect_probes.studies.training_runs import training_facts
from introspect_probes.worlds.cases import Case
from introspect_probes.worlds.scene import CELL_PIXELS
from introspect_probes.worlds.world import get_world

KINDS = ("digit_at", "color_at")
"""Questions whose whole answer is to be seen in one cell."""
SEED = 404


def head_curves(
    out: Path, runs: Sequence[Path], *, heads: int = 200, work: Path = Path("runs/studies/learning-state"), seed: int = SEED
) -> list[dict[str, Any]]:
    """Score the heads of every checkpoint of every run; a run that is done is not scored again.

    Args:
        out: folder of the result files, one a run.
        runs: folders of finished training runs, of whatever plans, each with its untrained weights.
        heads: questions, and pictures, by which heads are scored at each checkpoint.
        work: folder where the scores of single checkpoints are kept.
        seed: of the questions.

    Returns:
        The results, one a run.

    Raises:
        ProbesError: a folder is no finished run, or has no untrained weights.
    """
    found_steps = [checkpoint_steps(run) for run in runs]
    for run, steps in zip(runs, found_steps, strict=True):
        if steps[0] != 0:
            raise ProbesError(f"{run} has no untrained weights (checkpoint-000000), without which there is no null; train it again")
    out.mkdir(parents=True, exist_ok=True)
    request = {"heads": heads, "seed": seed}
    results = []
    for run, steps in zip(runs, found_steps, strict=True):
        path = out / f"{run.name}.json"
        if (found := filed(path, request)) is not None:
            results.append(found)
            continue
        result = {
            "benchmark": "study head-curves",
            "run": run.name,
            "training": training_facts(run),
            "model": model_facts(run),
            "steps": steps,
            "heads": head_curve(run, steps, heads, work, seed),
            "request": request,
            "provenance": provenance(),
        }
        file_result(path, result)
        results.append(result)
    return results


def head_curve(run: Path, steps: Sequence[int], n: int, work: Path, seed: int) -> list[dict[str, Any] | None]:
    """Head scores of every checkpoint of a run; `None` where no head looked at any evidence.

    Returns:
        For each step `scores` (`[layers][heads]`, sum 1), `hit_rates` likewise, `hit_rate` of the best head, `right`, the share
        of the same questions that was answered right, and `with_final`, the rank correlation over heads with the last
        checkpoint's scores.
    """
    folder = work / run.name
    folder.mkdir(parents=True, exist_ok=True)
    found: list[dict[str, Any] | None] = []
    cases = None
    for step in tqdm(steps, desc=f"{run.name}, heads", unit="checkpoint", leave=False):
        path = folder / f"curve-{seed}-{n}-{step:06d}.json"
        if not path.exists():
            cases = cases or list(get_world("digits").cases(n, seed=seed, pool="probe", kinds=KINDS))
            path.write_text(json.dumps(_scored(Engine(load_checkpoint_model(run, step)), cases)), encoding="utf-8")
        found.append(json.loads(path.read_text(encoding="utf-8")))
    last = found[-1]
    for entry in found:
        if entry is not None and last is not None:
            value = rank_correlation(np.array(entry["scores"]), np.array(last["scores"]))
            entry["with_final"] = round(value, 4) if np.isfinite(value) else None
    return found


def model_facts(run: Path) -> dict[str, Any]:
    """Family and shape of a run's language model, and how many parameters the whole has."""
    loaded = load_model(str(run / "model"))
    return {
        "family": loaded.model.config.model_type,
        "layers": loaded.num_layers,
        "heads": loaded.num_heads,
        "kv_heads": loaded.num_kv_heads,
        "parameters": sum(p.numel() for p in loaded.model.parameters()),
    }


def _scored(engine: Engine, cases: Sequence[Case]) -> dict[str, Any] | None:
    try:
        heads = score_heads(engine, [_head_case(case) for case in cases])
    except HeadScoresError:
        return None
    if heads.hit_rates is None:
        raise ProbesError("heads were scored without hit rates")
    return {
        "scores": heads.scores.round(6).tolist(),
        "hit_rates": heads.hit_rates.round(4).tolist(),
        "hit_rate": heads.facts["best_hit_rate"],
        "right": round(float(ask(engine, cases).correct.mean()), 4),
    }


def _head_case(case: Case) -> HeadCase:
    picture = case.picture()
    if case.scene is None or picture is None:
        raise ProbesError(f"case {case.id} has no scene, so where its evidence lies is not known")
    row, column = divmod(case.evidence[0], case.scene.columns)
    box = (column * CELL_PIXELS, row * CELL_PIXELS, (column + 1) * CELL_PIXELS, (row + 1) * CELL_PIXELS)
    return HeadCase(case.id, picture, case.question, case.answers[0], (Evidence(0, len(case.answers[0]), (box,)),), case.context)
