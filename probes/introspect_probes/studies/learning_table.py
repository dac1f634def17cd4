"""Results of the study of learning state as Markdown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from introspect.heads.scoring import rank_correlation
from introspect_probes.studies.contrast import random_effects
from introspect_probes.studies.tables import markdown_table, with_interval

_DELTAS = {"L+S": "S over L", "L+untrained": "untrained S over L", "L+truth+S": "S over L + truth"}


def read_runs(folder: Path) -> list[dict[str, Any]]:
    """The result files of the study's folder, run by run."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]


def learning_state_table(results: Sequence[dict[str, Any]]) -> str:
    """What head statistics tell of what will be learned, run by run and over runs; then the curves of the head scores."""
    if not results:
        return "No results are filed."
    return "\n\n".join([_told(results), _verdict(results), _curves(results), _across(results)])


def _told(results: Sequence[dict[str, Any]]) -> str:
    head = ["held-out run", "wrong items", "right at the end", "step and type", "L"]
    head += [*_DELTAS.values(), "S over L within step and type", "S exchanged"]
    body = [
        [
            r["run"],
            f"{r['items']['test']:,}",
            f"{r['items']['learned']:.1%}",
            f"{r['auroc']['step and type']:.3f}",
            f"{r['auroc']['L']:.3f}",
            *(with_interval(r["delta"][name]["difference"], signed=True) for name in _DELTAS),
            with_interval(r["delta_within"]["L+S"]["difference"], signed=True),
            f"{r['permuted']['mean']:+.3f}, at most {r['permuted']['largest']:+.3f}",
        ]
        for r in results
    ]
    over = [_over_runs(results, "delta", name) for name in _DELTAS] + [_over_runs(results, "delta_within", "L+S")]
    body.append(["**all** (random effects)", "", "", "", "", *over, ""])
    return markdown_table(head, body)


def _effect(results: Sequence[dict[str, Any]], how: str, name: str) -> list[float] | None:
    entries = [r[how][name] for r in results if None not in r[how][name]["difference"]]
    if len(entries) < 2:
        return None
    effect = random_effects([e["difference"][0] for e in entries], [e["standard_error"] for e in entries])
    return [effect["mean"], effect["low"], effect["high"]]


def _over_runs(results: Sequence[dict[str, Any]], how: str, name: str) -> str:
    found = _effect(results, how, name)
    return "-" if found is None else with_interval(found, signed=True)


def _verdict(results: Sequence[dict[str, Any]]) -> str:
    """What the figures say, in words."""
    text = []
    for name, what in _DELTAS.items():
        found = _effect(results, "delta", name)
        if found is not None:
            says = "more" if found[1] > 0 else "less" if found[2] < 0 else "nothing that can be told from chance"
            text.append(f"{what}: {says} ({with_interval(found, signed=True)} over runs).")
    return " ".join(text)


def _curves(results: Sequence[dict[str, Any]]) -> str:
    """Accuracy and head scores by step: means over runs, with the lowest and highest."""
    head = ["step", "right", "hit rate of the best head", "rank correlation of head scores with the last step's"]
    body = []
    for number, step in enumerate(results[0]["steps"]):
        heads = [r["heads"][number] for r in results if r["heads"][number] is not None]
        body.append(
            [
                f"{step}",
                _spread([r["right"][number]["all"] for r in results]),
                _spread([h["hit_rate"] for h in heads]),
                _spread([h["with_final"] for h in heads if h.get("with_final") is not None], signed=True),
            ]
        )
    return markdown_table(head, body)


def _across(results: Sequence[dict[str, Any]]) -> str:
    """How far two runs agree on where their heads are."""
    last = [np.array(r["heads"][-1]["scores"]) for r in results if r["heads"][-1] is not None]
    pairs = [(a, b) for i, a in enumerate(last) for b in last[i + 1 :]]
    if not pairs:
        return "No two runs have head scores to compare."
    as_numbered = [rank_correlation(a, b) for a, b in pairs]
    sorted_within = [rank_correlation(np.sort(a, axis=1), np.sort(b, axis=1)) for a, b in pairs]
    return (
        f"Between runs, the last scores of the same layer and head number correlate by {_spread(as_numbered, signed=True)} (rank; mean, "
        f"lowest to highest pair), and by {_spread(sorted_within, signed=True)} once each layer's heads are put in order of their score: "
        "which layers look at the evidence, and with how many heads."
    )


def _spread(values: Sequence[float], signed: bool = False) -> str:
    if not len(values):
        return "-"
    sign = "+" if signed else ""
    return "{:{f}} ({:{f}} to {:{f}})".format(float(np.mean(values)), min(values), max(values), f=f"{sign}.2f")
