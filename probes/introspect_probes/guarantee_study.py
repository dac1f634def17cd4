"""How often a guarantee is broken when pools are drawn anew: `python -m introspect_probes.guarantee_study --traces DIR --out FILE`.

On recorded answers that no probe was fitted or calibrated on; see `pool_redraws`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from introspect.provenance import provenance
from introspect_probes.dataset import TableBuilder
from introspect_probes.errors import TraceError
from introspect_probes.labels import read_labelled
from introspect_probes.parts import OUTSIDE_KIND, is_promised, part_of
from introspect_probes.pool_redraws import REDRAWS, RULES, RUN, Judged, draw_again, redraw, units_of
from introspect_probes.probe_set import ProbeSet, load_probe_set
from introspect_probes.published import published_confidence
from introspect_probes.token_store import TokenStore


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
