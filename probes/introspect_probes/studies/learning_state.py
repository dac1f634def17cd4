"""Learning state: do head statistics tell, of what a model gets wrong, what it will have learned at the end of training?

At each log-spaced checkpoint of several training runs the same items are asked. An item that is wrong there gets the
label "right at the end". Probes are fitted on all runs but one, and judged on that one and on handwriting that none of
them was fitted on: the step and the question's type, then L (with logits), then L+S (with head statistics of the same
query). Controls: the statistics of the untrained weights in the place of S, S exchanged among items of one step and
type, and L that also knows how probable the right word is already.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from introspect.engine import Engine
from introspect.provenance import provenance
from introspect_probes.embedded.checkpoints import checkpoint_steps, load_checkpoint_model
from introspect_probes.errors import ProbesError
from introspect_probes.metrics import ClusterBootstrap, weighted_auroc
from introspect_probes.studies.contrast import difference, permuted_within
from introspect_probes.studies.filed import file_result, filed
from introspect_probes.studies.head_curves import head_curve
from introspect_probes.studies.learning_rows import Rows, ask, standardised_within
from introspect_probes.studies.nested import Choice, choose, scores
from introspect_probes.studies.training_runs import training_facts
from introspect_probes.worlds.digits import Pool
from introspect_probes.worlds.world import get_world

KINDS = {"digit_at": 3.0, "color_at": 1.5, "digit_of": 1.0, "color_of": 1.0, "count": 1.0, "fact": 1.5}
"""Questions that the study models are trained on and that one word answers."""
FIT_POOL: Pool = "probe"
TEST_POOL: Pool = "test"
PERMUTATIONS, RESAMPLES = 5, 300
SEED = 404
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Items:
    """Items that are wrong at a checkpoint, of all checkpoints but the last of one run.

    Attributes:
        blocks: features by name: `step and type`, `logits`, `truth`, `statistics`, `untrained`.
        label: 1 where the item is right at the end.
        group: items that share evidence.
        stratum: step and type.
    """

    blocks: dict[str, Floats]
    label: NDArray[np.int8]
    group: NDArray[np.str_]
    stratum: NDArray[np.str_]


def learning_state(
    out: Path,
    runs: Sequence[Path],
    *,
    fit: int = 200,
    test: int = 600,
    heads: int = 200,
    work: Path = Path("runs/studies/learning-state"),
    seed: int = SEED,
) -> list[dict[str, Any]]:
    """Run the study; every held-out run is a step with a result file of its own, and steps that are done are not repeated.

    Args:
        out: folder of the result files, one a run.
        runs: folders of finished training runs of one plan that differ in their seed; at least three.
        fit: items that the other runs are asked at each checkpoint.
        test: items that the held-out run is asked at each checkpoint.
        heads: pictures by which heads are scored at each checkpoint.
        work: folder of the recorded rows.
        seed: of the items.

    Returns:
        The results, one a run.

    Raises:
        ProbesError: too few runs, runs with other checkpoints, or nothing to fit on.
    """
    if len(runs) < 3:
        raise ProbesError(f"one run is held out and two are fitted on: expected three runs or more, got {len(runs)}")
    steps = checkpoint_steps(runs[0])
    for run in runs[1:]:
        if checkpoint_steps(run) != steps:
            raise ProbesError(f"{run} has other checkpoints than {runs[0]}; give runs of one plan")
    out.mkdir(parents=True, exist_ok=True)
    request = {"runs": [run.name for run in runs], "fit": fit, "test": test, "heads": heads, "seed": seed}
    results = []
    for run in runs:
        path = out / f"{run.name}.json"
        if (found := filed(path, request)) is not None:
            results.append(found)
            continue
        known = [items_of(record_run(r, steps, FIT_POOL, fit, work, seed), steps) for r in runs if r != run]
        rows = record_run(run, steps, TEST_POOL, test, work, seed)
        result = {
            "benchmark": "study learning-state",
            "run": run.name,
            "training": training_facts(run),
            "steps": steps,
            "right": [_right(rows[step]) for step in steps],
            **compare(known, items_of(rows, steps)),
            "heads": head_curve(run, steps, heads, work, seed),
            "request": request,
            "provenance": provenance(),
        }
        file_result(path, result)
        results.append(result)
    return results


def record_run(run: Path, steps: Sequence[int], pool: Pool, n: int, work: Path, seed: int) -> dict[int, Rows]:
    """The rows of every checkpoint of a run by step; what lies in `work` already is read, not asked again."""
    folder = work / run.name
    folder.mkdir(parents=True, exist_ok=True)
    cases = None
    found = {}
    for step in tqdm(steps, desc=f"{run.name}, {pool}", unit="checkpoint", leave=False):
        path = folder / f"{pool}-{seed}-{n}-{step:06d}.safetensors"
        if not path.exists():
            cases = cases or list(get_world("digits").cases(n, seed=seed, pool=pool, kinds=KINDS))
            ask(Engine(load_checkpoint_model(run, step)), cases).save(path)
        found[step] = Rows.load(path)
    return found


def items_of(rows: dict[int, Rows], steps: Sequence[int]) -> Items:
    """What is wrong at each checkpoint but the last; statistics relative to those of the step's items of one type, right ones included."""
    final, first = rows[steps[-1]], rows[steps[0]]
    kinds = sorted(KINDS)
    parts: list[tuple[dict[str, Floats], NDArray[np.int8], NDArray[np.str_], NDArray[np.str_]]] = []
    for number, step in enumerate(steps[:-1]):
        own = rows[step]
        wrong = own.correct == 0
        place = np.zeros((len(own), len(steps) - 1, len(kinds)))
        place[np.arange(len(own)), number, np.searchsorted(kinds, own.kind)] = 1
        logits = standardised_within(own.logits, own.kind)
        blocks = {
            "step and type": 3 * place.reshape(len(own), -1),  # next to standardised columns, a penalty that hardly tells
            "logits": np.concatenate([np.clip(own.logits, -30, 30) / 5, logits], axis=1),
            "truth": np.stack([np.clip(own.truth, -30, 0) / 5, standardised_within(own.truth[:, None], own.kind)[:, 0]], axis=1),
            "statistics": standardised_within(own.statistics, own.kind),
            "untrained": standardised_within(first.statistics, own.kind),
        }
        stratum = np.array([f"{step} {kind}" for kind in own.kind])
        parts.append(({n: b[wrong] for n, b in blocks.items()}, final.correct[wrong], own.group[wrong], stratum[wrong]))
    return Items(
        {name: np.concatenate([blocks[name] for blocks, *_ in parts]) for name in parts[0][0]},
        np.concatenate([label for _, label, _, _ in parts]),
        np.concatenate([group for *_, group, _ in parts]),
        np.concatenate([stratum for *_, stratum in parts]),
    )


PROBES: dict[str, tuple[str, ...]] = {
    "step and type": ("step and type",),
    "L": ("step and type", "logits"),
    "L+S": ("step and type", "logits", "statistics"),
    "L+untrained": ("step and type", "logits", "untrained"),
    "L+truth": ("step and type", "logits", "truth"),
    "L+truth+S": ("step and type", "logits", "truth", "statistics"),
}
"""Blocks of each probe; all but the last were chosen for a probe before it."""
DELTAS = {"L+S": "L", "L+untrained": "L", "L+truth+S": "L+truth"}


def compare(known: Sequence[Items], fresh: Items) -> dict[str, Any]:
    """Fit every probe on the other runs' items, and compare them on those of the held-out run."""
    label = np.concatenate([items.label for items in known])
    group = np.concatenate([items.group for items in known])
    blocks = {name: np.concatenate([items.blocks[name] for items in known]) for name in fresh.blocks}
    choices: dict[tuple[str, ...], Choice] = {}
    found: dict[str, Floats] = {}
    for name, parts in PROBES.items():
        choices[parts] = choose([blocks[p] for p in parts], label, group, choices.get(parts[:-1]))
        found[name] = scores(choices[parts], [blocks[p] for p in parts], label, [fresh.blocks[p] for p in parts])
    bootstrap = ClusterBootstrap(fresh.group, resamples=RESAMPLES)
    whole = {name: bootstrap.auroc(value, fresh.label) for name, value in found.items()}
    within = {name: bootstrap.auroc(value, fresh.label, fresh.stratum) for name, value in found.items()}
    return {
        "items": {"fit": len(label), "test": len(fresh.label), "learned": round(float(fresh.label.mean()), 4)},
        "auroc": {name: round(value, 4) for name, (value, _) in whole.items()},
        "within": {name: round(value, 4) for name, (value, _) in within.items() if np.isfinite(value)},
        "delta": {name: difference(whole[name], whole[base]) for name, base in DELTAS.items()},
        "delta_within": {name: difference(within[name], within[base]) for name, base in DELTAS.items()},
        "permuted": _permuted(known, fresh, choices[PROBES["L+S"]], blocks, label, whole["L"][0]),
        "factors": {name: choices[PROBES[name]].factors[-1] for name in DELTAS},
    }


def _permuted(
    known: Sequence[Items], fresh: Items, choice: Choice, blocks: dict[str, Floats], label: NDArray[np.int8], reference: float
) -> dict[str, Any]:
    """What S adds to L when it is exchanged among items of one run, step and type."""
    rng = np.random.default_rng(0)
    used = Choice(choice.strength, (*choice.factors[:-1], choice.factors[-1] or 1.0))
    cells = np.concatenate([np.char.add(f"{number} ", items.stratum) for number, items in enumerate(known)])
    own, other = (np.unique(names, return_inverse=True)[1] for names in (cells, fresh.stratum))
    base = PROBES["L"]
    deltas = []
    for _ in range(PERMUTATIONS):
        fitted = [*(blocks[p] for p in base), blocks["statistics"][permuted_within(rng, own)]]
        judged = [*(fresh.blocks[p] for p in base), fresh.blocks["statistics"][permuted_within(rng, other)]]
        found = scores(used, fitted, label, judged)
        deltas.append(weighted_auroc(found, fresh.label, np.ones(len(found))) - reference)
    return {"mean": round(float(np.mean(deltas)), 4), "largest": round(max(deltas), 4), "times": PERMUTATIONS}


def _right(rows: Rows) -> dict[str, float]:
    """Share of right answers, by type and over all."""
    shares = {str(kind): float(rows.correct[rows.kind == kind].mean()) for kind in np.unique(rows.kind)}
    return {name: round(share, 4) for name, share in {"all": float(rows.correct.mean()), **shares}.items()}
