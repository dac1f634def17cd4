"""A model that hides its image attention at equal accuracy: what do frozen probes say of it, and is drift told?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from introspect.engine import Engine
from introspect.loading import EMBEDDED, load_model
from introspect.provenance import provenance
from introspect.types import Budget
from introspect_kernels import Segment
from introspect_probes.dataset import Table, load_table
from introspect_probes.drift import DELTA
from introspect_probes.drift_study import REPEATS, Answers, delays, false_alarms
from introspect_probes.errors import ProbesError
from introspect_probes.metrics import ClusterBootstrap, interval
from introspect_probes.probe_set import ProbeSet
from introspect_probes.published import published_confidence
from introspect_probes.record import record
from introspect_probes.reference_fit import answer_streams
from introspect_probes.studies.filed import file_result, filed
from introspect_probes.studies.free_running import fit_base, judge
from introspect_probes.studies.hiding import Hiding, hide
from introspect_probes.studies.shifts import KINDS, Shift
from introspect_probes.studies.tables import markdown_table, with_interval
from introspect_probes.traces import Trace, read_traces
from introspect_probes.worlds.digits import Pool
from introspect_probes.worlds.world import get_world

MODELS = ("original", "hidden")
SETTINGS = {"full": Budget(), "snapkv-25": Budget("snapkv", ratio=0.25)}
SEED = 303


def attack(
    out: Path,
    probes: ProbeSet,
    traces: Sequence[Path],
    *,
    plan: Hiding | None = None,
    n: int = 400,
    settings: Sequence[str] = tuple(SETTINGS),
    repeats: int = REPEATS,
    work: Path = Path("runs/studies/attack"),
    seed: int = SEED,
) -> list[dict[str, Any]]:
    """Fine-tune the embedded model to hide, then judge it and the original by the same frozen probes on the same cases.

    Every step goes on where it was; every arm, a model under a setting, has a result file of its own.

    Args:
        out: folder of the result files.
        probes: the frozen probe set of the embedded model.
        traces: the folders that it was fitted on; L is fitted on their fit part.
        plan: of the fine-tuning.
        n: test cases an arm; as many of the calibration pool, answered by the original, are what drift is told from.
        settings: names of `SETTINGS`.
        repeats: streams drawn for each figure of drift.
        work: folder of the model and the recorded traces, which are not committed.
        seed: of the cases.

    Returns:
        The results, one an arm.

    Raises:
        ProbesError: a probe set without hallucination risk, nothing to fit L on, or a folder of another plan.
    """
    plan = plan or Hiding()
    if probes.claims is None:
        raise ProbesError(f"the probe set {probes.name} has no hallucination risk; train one on answers with claims")
    out.mkdir(parents=True, exist_ok=True)
    request = {"n": n, "seed": seed, "repeats": repeats, "probe_set": probes.name, "hiding": asdict(plan)}
    paths = {(model, setting): out / f"{model}-{setting}.json" for setting in settings for model in MODELS}
    found = {key: result for key, path in paths.items() if (result := filed(path, request)) is not None}
    if len(found) < len(paths):
        hiding = hide(work / "model", plan)
        base = fit_base(traces)
        engines = {"original": Engine(load_model(EMBEDDED)), "hidden": Engine(load_model(str(work / "model")))}
        for (model, setting), path in paths.items():
            if (model, setting) in found:
                continue
            usual, own = (answered(engines[m], m, setting, "test", n, work, seed=seed) for m in ("original", model))
            reference = answered(engines["original"], "original", setting, "calibration", n, work, seed=seed)
            table = load_table(own)
            result = judge(Shift(f"{model}-{setting}", SETTINGS[setting]), probes, base, table)
            result |= {
                "benchmark": "study attack",
                **facts(probes, table),
                "drift": drift(probes, reference, usual, own, repeats=repeats, seed=seed) if model == "hidden" else None,
                "losses": hiding["curve"][-1] if model == "hidden" else None,
                "request": request,
                "provenance": provenance(),
            }
            file_result(path, result)
            found[model, setting] = result
    return [found[key] for key in paths]


def answered(engine: Engine, model: str, setting: str, pool: Pool, n: int, work: Path, *, seed: int) -> list[Trace]:
    """A model's answers to `n` cases of a pool, recorded once."""
    folder = work / f"{model}-{setting}-{pool}"
    record(get_world("digits").cases(n, seed=seed, pool=pool, kinds=KINDS), engine, folder, budgets=[SETTINGS[setting]], total=n)
    return [trace for trace in read_traces(folder) if trace.steps]


def facts(probes: ProbeSet, table: Table) -> dict[str, Any]:
    """What the attack aims at: the image's share of attention, AUROC of confidence, and how many prompts count as familiar."""
    masses = [
        float(np.nanmean(step.heads.mass[:, :, Segment.IMAGE])) for a in table.answers for step in a.trace.steps if step.heads is not None
    ]
    confidence = published_confidence(probes, table)
    familiar = [probes.in_domain(a.trace.prompt) for a in table.answers]
    return {
        "image_mass": round(float(np.mean(masses)), 4),
        "confidence_auroc": interval(*ClusterBootstrap(table.groups).auroc(confidence, table.correct)).as_list(),
        "in_domain": None if probes.domain is None else round(float(np.mean([p is not None and p >= 0.5 for p in familiar])), 4),
    }


def drift(
    probes: ProbeSet, reference: Sequence[Trace], usual: Sequence[Trace], own: Sequence[Trace], *, repeats: int, seed: int
) -> dict[str, Any]:
    """Is it told that the model has changed, how soon, and how often is it told of a model that has not?"""
    streams: list[Answers] = [[answer_streams(probes, trace) for trace in part] for part in (reference, usual, own)]
    names = [name for name in streams[0][0] if all(any(a[name] is not None for a in part) for part in streams)]
    rng = np.random.default_rng(seed)
    return {
        "false_alarms_per_answer": false_alarms(streams[0], streams[1], names, DELTA, repeats, rng),
        **delays(streams[0], streams[1], streams[2], names, DELTA, repeats, rng),
    }


def attack_table(results: Sequence[dict[str, Any]]) -> str:
    """Original and hidden, setting by setting."""
    head = ["model and cache", "image's share", "right", "false", "AUROC of risk", "L", "AUROC of confidence"]
    head += ["ECE of risk", "ECE of confidence", "familiar", "drift told within 200 answers", "median delay", "first by"]
    body = []
    for r in results:
        body.append(
            [
                r["arm"],
                f"{r['image_mass']:.3f}",
                f"{r['right']:.1%}",
                f"{r['claims']['false'] / r['claims']['claims']:.1%}",
                *(with_interval(r["claims"]["scores"][name]) for name in ("probe", "L")),
                with_interval(r["confidence_auroc"]),
                f"{r['risk']['ece']:.3f}",
                f"{r['confidence']['ece']:.3f}",
                "-" if r["in_domain"] is None else f"{r['in_domain']:.1%}",
                *_drift_cells(r["drift"]),
            ]
        )
    return markdown_table(head, body)


def _drift_cells(found: dict[str, Any] | None) -> list[str]:
    """Share of streams in which drift was told, how soon, and which stream told it most often."""
    if found is None:
        return ["-", "-", "-"]
    delay = found["median_delay"]["any"]
    told = {name: share for name, share in found["told"].items() if name != "any"}
    first = max(told, key=lambda name: (told[name], -(found["median_delay"][name] or 1e9)))
    return [f"{found['told']['any']:.0%}", "-" if delay is None else f"{delay:.0f}", first.replace("_", " ") if told[first] else "-"]
