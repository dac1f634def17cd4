"""What only the kernel knows: do head statistics tell wrong answers where logits and hidden states do not?

For each arm (what is evicted before the answer) the question's word is judged by L (logits, the word, the cell asked
about), L+H (with the last position's hidden state behind every layer) and L+H+S, with S one set of head statistics of
that same query. Softmax forgets a constant: how much attention there was before it was normalised, log-sum-exp, is no
function of a head's output, so that neither logits nor hidden states need contain what eviction has taken away.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from introspect.engine import Engine
from introspect.loading import load_model
from introspect.provenance import provenance
from introspect_probes.errors import ProbesError
from introspect_probes.metrics import weighted_auroc
from introspect_probes.studies.arms import ARMS, Arm, get_arm
from introspect_probes.studies.contrast import Contrast, permuted_within
from introspect_probes.studies.filed import file_result, filed
from introspect_probes.studies.nested import Choice, choose, scores, standardised
from introspect_probes.studies.nonlinear import choose_decay, network_scores
from introspect_probes.studies.recording import FIT_POOLS, TEST_POOL, matched_noise, record_rows
from introspect_probes.studies.rows import Rows, columns
from introspect_probes.studies.training_runs import model_of, training_facts

SETS: dict[str, tuple[str, ...]] = {
    "normalised": ("normalised",),
    "lse": ("lse",),
    "retention": ("retention",),
    "all": ("normalised", "lse", "retention", "retained"),
}
"""The sets of statistics S; see `rows.columns`."""
NETWORK_SETS = ("lse", "all")
"""Sets that are also added to L alone, given to the nonlinear probe, and permuted, which takes longest."""
PERMUTATIONS = 19
SEED = 101


def kernel_only(
    out: Path,
    *,
    models: Sequence[str] = ("embedded",),
    arms: Sequence[str] = tuple(ARMS),
    test: int = 4000,
    fit: int = 4000,
    work: Path = Path("runs/studies/kernel-only"),
    seed: int = SEED,
) -> list[dict[str, Any]]:
    """Run the study; every model and arm is a step with a result file of its own, and steps that are done are not repeated.

    Args:
        out: folder of the result files, `<model>-<arm>.json`.
        models: model seeds: folders of training runs, folders of models or hub ids; files are named by the last part.
        arms: see `ARMS`.
        test: test cases an arm.
        fit: cases an arm that probes are fitted on, half of them of each fit pool.
        work: folder of the recorded rows, which are large and not committed.
        seed: of the cases.

    Returns:
        The results, one a step.

    Raises:
        ProbesError: an unknown arm, too few cases, or a model that does not know the world.
    """
    out.mkdir(parents=True, exist_ok=True)
    chosen = [get_arm(name) for name in arms]
    results = []
    for model in models:
        engine: Engine | None = None
        for arm in chosen:
            path = out / f"{Path(model).name}-{arm.name}.json"
            request = {"test": test, "fit": fit, "seed": seed}
            if (found := filed(path, request)) is not None:
                results.append(found)
                continue
            engine = engine or Engine(load_model(model_of(model)))
            result = run_arm(engine, arm, work / Path(model).name, test=test, fit=fit, seed=seed)
            result["model"] |= {"name": Path(model).name} | training_facts(Path(model))
            result |= {"request": request}
            file_result(path, result)
            results.append(result)
    return results


def run_arm(engine: Engine, arm: Arm, work: Path, *, test: int, fit: int, seed: int) -> dict[str, Any]:
    """One step: record, fit, compare."""
    half = fit // 2
    noise = matched_noise(engine, arm, work, seed=seed)
    known = Rows.joined([record_rows(engine, arm, pool, half, work, seed=seed, noise=noise) for pool in FIT_POOLS])
    fresh = record_rows(engine, arm, TEST_POOL, test, work, seed=seed, noise=noise)
    for rows, part in ((known, "fit"), (fresh, "test")):
        if min(rows.correct.sum(), (1 - rows.correct).sum()) < 2:
            raise ProbesError(f"{arm.name}: {int(rows.correct.sum())} of {len(rows)} answers of the {part} part are right; take more cases")
    return {
        "benchmark": "study kernel-only",
        "arm": arm.name,
        "model": {"name": Path(engine.loaded.name).name, "fingerprint": engine.loaded.fingerprint},
        "kept": round(float(fresh.kept.mean()), 4),
        "noise": noise,
        "cases": {part: _facts(rows) for part, rows in (("fit", known), ("test", fresh))},
        **compare(known, fresh, columns(engine.loaded)),
        "provenance": provenance(),
    }


def _facts(rows: Rows) -> dict[str, Any]:
    return {"answers": len(rows), "groups": len(set(rows.group.tolist())), "right": round(float(rows.correct.mean()), 4)}


def compare(known: Rows, fresh: Rows, sets: dict[str, NDArray[np.int64]]) -> dict[str, Any]:
    """Fit L, L+H and L+H+S for every set, linear and as networks, and compare them on fresh rows."""
    blocks = {
        "L": standardised(known.logits, fresh.logits),
        "H": standardised(known.hidden, fresh.hidden),
        **{name: standardised(*(rows.statistics[:, _of(sets, parts)] for rows in (known, fresh))) for name, parts in SETS.items()},
    }
    linear, choices = _linear(blocks, known)
    found = {**linear, **_networks(blocks, known)}
    contrast = Contrast(found, fresh.correct, fresh.group, deciles_of="L")
    better = max(("L", "L+H"), key=contrast.value)
    return {
        "auroc": {name: contrast.auroc(name) for name in found},
        "better": better,
        "delta": {s: contrast.delta(f"L+H+{s}", better) for s in SETS},
        "delta_without_hidden": {s: contrast.delta(f"L+{s}", "L") for s in NETWORK_SETS},
        "delta_network": {s: contrast.delta(f"network L+H+{s}", "network L+H") for s in NETWORK_SETS},
        "within_deciles": {"deciles": contrast.deciles, **{s: contrast.delta_within(f"L+H+{s}", "L+H") for s in SETS}},
        "permuted": {s: _permuted(blocks, s, choices[f"L+H+{s}"], known, fresh, contrast.value(better)) for s in NETWORK_SETS},
        "penalties": {name: {"strength": c.strength, "factors": list(c.factors)} for name, c in choices.items()},
    }


def _of(sets: dict[str, NDArray[np.int64]], parts: Sequence[str]) -> NDArray[np.int64]:
    return np.concatenate([sets[part] for part in parts])


def _linear(blocks: dict[str, list[NDArray[np.float64]]], known: Rows) -> tuple[dict[str, NDArray[np.float64]], dict[str, Choice]]:
    """Test logits of the linear probes and the penalties that they were fitted with."""
    first = choose([blocks["L"][0]], known.correct, known.group)
    second = choose([blocks["L"][0], blocks["H"][0]], known.correct, known.group, first)
    choices = {"L": first, "L+H": second}
    parts = {"L": ["L"], "L+H": ["L", "H"]}
    for name in SETS:
        if not blocks[name][0].shape[1]:  # nothing was evicted: retention never varies
            choices |= {f"L+{name}": first, f"L+H+{name}": second}
            parts |= {f"L+{name}": ["L"], f"L+H+{name}": ["L", "H"]}
            continue
        for before, base in (("L", first), ("L+H", second)) if name in NETWORK_SETS else (("L+H", second),):
            own = [*parts[before], name]
            choices[f"{before}+{name}"] = choose([blocks[p][0] for p in own], known.correct, known.group, base)
            parts[f"{before}+{name}"] = own
    found = {
        name: scores(choice, [blocks[p][0] for p in parts[name]], known.correct, [blocks[p][1] for p in parts[name]])
        for name, choice in choices.items()
    }
    return found, choices


def _networks(blocks: dict[str, list[NDArray[np.float64]]], known: Rows) -> dict[str, NDArray[np.float64]]:
    """Test logits of networks on L+H and on L+H+S, all under the penalty that suits L+H."""
    names = {"network L+H": ("L", "H"), **{f"network L+H+{s}": ("L", "H", s) for s in NETWORK_SETS}}
    matrices = {name: [np.concatenate([blocks[p][part] for p in parts], axis=1) for part in (0, 1)] for name, parts in names.items()}
    decay = choose_decay(matrices["network L+H"][0], known.correct, known.group)
    return {name: network_scores(own, known.correct, fresh, decay) for name, (own, fresh) in matrices.items()}


def _permuted(
    blocks: dict[str, list[NDArray[np.float64]]], name: str, choice: Choice, known: Rows, fresh: Rows, reference: float
) -> dict[str, Any]:
    """What S adds when its rows are exchanged among answers of the same word (an arm has one rate): nothing, if the rest is sound."""
    rng = np.random.default_rng(0)
    used = Choice(choice.strength, (*choice.factors[:-1], choice.factors[-1] or 1.0))
    deltas = []
    for _ in range(PERMUTATIONS if blocks[name][0].shape[1] else 0):
        own = blocks[name][0][permuted_within(rng, known.word)]
        other = blocks[name][1][permuted_within(rng, fresh.word)]
        found = scores(used, [blocks["L"][0], blocks["H"][0], own], known.correct, [blocks["L"][1], blocks["H"][1], other])
        deltas.append(weighted_auroc(found, fresh.correct, np.ones(len(found))) - reference)
    return {"mean": round(float(np.mean(deltas)), 4), "largest": round(max(deltas), 4), "times": len(deltas)} if deltas else {"times": 0}
