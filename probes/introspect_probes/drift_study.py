"""Delay and false alarms of drift, on traces: `python -m introspect_probes.drift_study --probes embedded --traces DIR --out FILE`.

The reference is the calibration part under the whole cache; usual answers are the test part under the whole cache;
what changes is the condition, or that prompts come from outside. Streams are drawn from the answers at random.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from introspect.provenance import provenance
from introspect_probes.drift import DELTA, DriftMonitor
from introspect_probes.errors import TraceError
from introspect_probes.labels import read_labelled
from introspect_probes.parts import OUTSIDE_KIND, part_of
from introspect_probes.probe_set import ProbeSet, load_probe_set
from introspect_probes.reference_fit import answer_streams

Answers = list[dict[str, float | None]]
USUAL = "full"
BEFORE, AFTER, REPEATS = 100, 200, 200


def drift_study(
    probes: ProbeSet, folders: Sequence[Path], *, delta: float = DELTA, repeats: int = REPEATS, seed: int = 0
) -> dict[str, Any]:
    """Measure the monitor on traces.

    Args:
        probes: whose signals are watched.
        folders: their traces.
        delta: of the monitor.
        repeats: streams drawn for each figure.
        seed: of the draws.

    Returns:
        A benchmark row: `false_alarms_per_answer` on usual answers, by stream and in all, and for each change the share
        of streams of `BEFORE` usual and `AFTER` changed answers in which it was told, with the median delay in answers.

    Raises:
        TraceError: no answers for the reference or the usual.
    """
    reference, usual, changed = _answers(probes, folders)
    if not reference or not usual:
        raise TraceError(f"expected answers of the calibration and the test part under {USUAL}; give the folders of both")
    names = [n for n in usual[0] if any(a[n] is not None for a in usual) and any(a[n] is not None for a in reference)]
    rng = np.random.default_rng(seed)
    return {
        "benchmark": "drift",
        "provenance": provenance(),
        "probe_set": probes.name,
        "cases": [
            {
                "delta": delta, "reference": len(reference), "usual": len(usual), "repeats": repeats, "streams": names,
                "false_alarms_per_answer": false_alarms(reference, usual, names, delta, repeats, rng),
                "changes": {
                    name: {"answers": len(answers), **delays(reference, usual, answers, names, delta, repeats, rng)}
                    for name, answers in sorted(changed.items())
                },
            }
        ],
    }  # fmt: skip


def false_alarms(
    reference: Answers, usual: Answers, names: Sequence[str], delta: float, repeats: int, rng: np.random.Generator
) -> dict[str, float]:
    """Alarms per answer on `BEFORE + AFTER` usual answers, by stream and in any."""
    counts = dict.fromkeys([*names, "any"], 0)
    for _ in range(repeats):
        monitor = _monitor(reference, names, delta, rng)
        for answer in _drawn(usual, BEFORE + AFTER, rng):
            alarms = {alarm.stream for alarm in monitor.update({n: answer[n] for n in names})}
            for name in alarms:
                counts[name] += 1
            counts["any"] += bool(alarms)
    return {name: round(count / repeats / (BEFORE + AFTER), 6) for name, count in counts.items()}


def delays(
    reference: Answers, usual: Answers, changed: Answers, names: Sequence[str], delta: float, repeats: int, rng: np.random.Generator
) -> dict[str, Any]:
    """How often and how soon the first alarm after a change comes, by stream and in any; `None` where it seldom does."""
    first: dict[str, list[int]] = {name: [] for name in [*names, "any"]}
    for _ in range(repeats):
        monitor = _monitor(reference, names, delta, rng)
        for answer in _drawn(usual, BEFORE, rng):
            monitor.update({n: answer[n] for n in names})
        told: dict[str, int] = {}
        for number, answer in enumerate(_drawn(changed, AFTER, rng), 1):
            for alarm in monitor.update({n: answer[n] for n in names}):
                told.setdefault(alarm.stream, number)
        for name, number in told.items():
            first[name].append(number)
        if told:
            first["any"].append(min(told.values()))
    return {
        "told": {name: round(len(found) / repeats, 4) for name, found in first.items()},
        "median_delay": {name: float(np.median(found)) if len(found) > repeats / 2 else None for name, found in first.items()},
    }


def _monitor(reference: Answers, names: Sequence[str], delta: float, rng: np.random.Generator) -> DriftMonitor:
    order = rng.permutation(len(reference))
    values = {name: [v for i in order if (v := reference[i][name]) is not None] for name in names}
    return DriftMonitor(values, delta=delta)


def _drawn(answers: Answers, count: int, rng: np.random.Generator) -> list[Mapping[str, float | None]]:
    return [answers[i] for i in rng.integers(0, len(answers), count)]


def _answers(probes: ProbeSet, folders: Sequence[Path]) -> tuple[Answers, Answers, dict[str, Answers]]:
    """Streams of the reference, of usual answers, and of each other condition."""
    reference: Answers = []
    usual: Answers = []
    changed: dict[str, Answers] = {}
    for trace in chain.from_iterable(read_labelled(folder) for folder in folders):
        part = part_of(trace)
        if part == "fit" or (part == "calibration" and (trace.condition != USUAL or trace.kind == OUTSIDE_KIND)):
            continue
        found = answer_streams(probes, trace)
        if part == "calibration":
            reference.append(found)
        elif trace.kind == OUTSIDE_KIND:
            changed.setdefault("outside", []).append(found)
        elif trace.condition == USUAL:
            usual.append(found)
        else:
            changed.setdefault(trace.condition, []).append(found)
    return reference, usual, changed


def main(
    *,
    probes: Annotated[str, typer.Option(help="The folder of a probe set, or embedded.")],
    traces: Annotated[list[Path], typer.Option(help="A folder of traces; may be given again.")],
    out: Annotated[Path, typer.Option(help="Where to write the JSON row.")],
    repeats: int = REPEATS,
) -> None:
    """Measure delay and false alarms of drift on traces, and write the row."""
    row = drift_study(load_probe_set(probes), traces, repeats=repeats)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
    typer.echo(json.dumps(row))


if __name__ == "__main__":
    typer.run(main)
