"""Results of the studies as Markdown: on the terminal, and in the README."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from introspect_probes.studies.contrast import random_effects

AIM, NULL = 0.02, 0.01
"""The gain that was hoped for under eviction, and the largest that the control may show (issue 5)."""
_SETS = ("normalised", "lse", "retention", "all")
_SHORT = {"normalised": "normalised statistics", "lse": "lse", "retention": "retention", "all": "all of them"}


def read_results(folder: Path, order: Sequence[str]) -> list[dict[str, Any]]:
    """The result files of a study's folder, model by model, arms in the given order."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    return sorted(found, key=lambda r: (r.get("model", {}).get("name", ""), list(order).index(r["arm"])))


def with_interval(triple: Sequence[float | None], signed: bool = False) -> str:
    """Value and 95 % interval; a dash where it could not be had."""
    if any(x is None for x in triple):
        return "-"
    sign = "+" if signed else ""
    return "{:{f}} [{:{f}}, {:{f}}]".format(*triple, f=f"{sign}.3f")


def kernel_only_table(results: Sequence[dict[str, Any]]) -> str:
    """The study's arms: what S adds to the better of L and L+H, with what was done to make it vanish."""
    parts = []
    for model in dict.fromkeys(r["model"]["name"] for r in results):
        own = [r for r in results if r["model"]["name"] == model]
        tests = {r["cases"]["test"]["answers"] for r in own}
        parts += [
            f"Model `{model}`: {', '.join(f'{n:,}' for n in sorted(tests))} test cases an arm.",
            _gains(own),
            _checks(own),
            _verdict(own),
        ]
    models = {r["model"]["fingerprint"] for r in results}
    parts.append(_over_seeds(results) if len(models) > 1 else "One model seed, so nothing is said of the variation between seeds.")
    return "\n\n".join(parts)


def _gains(results: Sequence[dict[str, Any]]) -> str:
    head = ["arm", "kept", "noise", "right", "L", "L+H", *(f"+ {_SHORT[s]}" for s in _SETS)]
    body = [
        [
            r["arm"],
            f"{r['kept']:.0%}",
            "-" if r["noise"] is None else f"{r['noise']:g}",
            f"{r['cases']['test']['right']:.1%}",
            *(with_interval(r["auroc"][name]) for name in ("L", "L+H")),
            *(with_interval(r["delta"][s]["difference"], signed=True) for s in _SETS),
        ]
        for r in results
    ]
    return markdown_table(head, body)


def _checks(results: Sequence[dict[str, Any]]) -> str:
    head = ["arm", "network on L+H", "+ lse", "+ all", "lse to L alone", "lse within deciles of L", "lse permuted within the word"]
    body = []
    for r in results:
        within, permuted = r["within_deciles"], r["permuted"]["lse"]
        body.append(
            [
                r["arm"],
                with_interval(r["auroc"]["network L+H"]),
                *(with_interval(r["delta_network"][s]["difference"], signed=True) for s in ("lse", "all")),
                with_interval(r["delta_without_hidden"]["lse"]["difference"], signed=True),
                with_interval(within["lse"]["difference"], signed=True) if within["lse"] else "-",
                f"{permuted['mean']:+.3f}, at most {permuted['largest']:+.3f}" if permuted["times"] else "-",
            ]
        )
    return markdown_table(head, body)


def _verdict(results: Sequence[dict[str, Any]]) -> str:
    """Which arms meet the aim, in words."""
    met: list[str] = []
    missed: list[str] = []
    for r in (r for r in results if r["noise"] is None):
        best = _largest(r)
        value, low, _ = r["delta"][best]["difference"]
        (met if value >= AIM and low > 0 else missed).append(f"{r['arm']} ({_SHORT[best]} {value:+.3f})")
    text = [
        f"A gain of at least {AIM} with the interval above zero: {', '.join(met) or 'nowhere'}.",
        f"Not: {', '.join(missed) or 'nowhere'}.",
        "(Named is the best of four sets; the intervals are not widened for that choice.)",
    ]
    for r in (r for r in results if r["noise"] is not None):
        worst = max(_SETS, key=lambda s: abs(r["delta"][s]["difference"][0]))
        value = r["delta"][worst]["difference"][0]
        told = f"within {NULL}, as it should be" if abs(value) < NULL else f"not within {NULL}"
        text.append(f"Control {r['arm']}: the largest difference of any set is {value:+.3f} ({_SHORT[worst]}), {told}.")
    return " ".join(text)


def _largest(result: dict[str, Any]) -> str:
    """The set that adds most."""
    return max(_SETS, key=lambda s: float(result["delta"][s]["difference"][0]))


def _over_seeds(results: Sequence[dict[str, Any]]) -> str:
    """Random effects over model seeds, for every arm that several have."""
    head = ["arm", "seeds", *(f"+ {_SHORT[s]}" for s in _SETS), "seeds with lse at least .02 and above zero"]
    body = []
    for arm in dict.fromkeys(r["arm"] for r in results):
        own = [r for r in results if r["arm"] == arm]
        if len(own) < 2:
            continue
        cells = []
        for s in _SETS:
            pairs = [(r["delta"][s]["difference"][0], max(r["delta"][s]["standard_error"], 1e-5)) for r in own]
            effect = random_effects(*zip(*pairs, strict=True))
            cells.append(with_interval([effect["mean"], effect["low"], effect["high"]], signed=True))
        good = sum(r["delta"]["lse"]["difference"][0] >= AIM and r["delta"]["lse"]["difference"][1] > 0 for r in own)
        body.append([arm, str(len(own)), *cells, f"{good} of {len(own)}"])
    return "Random effects over model seeds:\n\n" + markdown_table(head, body)


def markdown_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table of a head and rows of cells."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *body))


def free_running_table(results: Sequence[dict[str, Any]]) -> str:
    """False claims in free-running answers: the frozen probe set against L, and which aims were met."""
    head = ["arm", "kept", "answers", "right", "claims", "false", "max probability", "L", "probe", "probe - L"]
    head += ["probe within type and position", "ECE of risk", "ECE of confidence"]
    body = []
    for r in results:
        own, within = r["claims"], r["within_position_and_type"].get("scores", {})
        body.append(
            [
                r["arm"],
                f"{r['kept']:.0%}",
                f"{r['answers']:,}",
                f"{r['right']:.1%}",
                f"{own['claims']:,}",
                f"{own['false'] / own['claims']:.1%}",
                *(with_interval(own["scores"][name]) for name in ("max probability", "L", "probe")),
                with_interval(own["probe_minus_L"], signed=True),
                with_interval(within["probe"]) if within else "-",
                f"{r['risk']['ece']:.3f}",
                f"{r['confidence']['ece']:.3f}",
            ]
        )
    return markdown_table(head, body) + "\n\n" + " ".join(_aims(results))


def _aims(results: Sequence[dict[str, Any]]) -> list[str]:
    """What the issue asks for, arm by arm, in words."""
    text = []
    for what, aim in (("cache", 0.06), ("image", 0.03)):
        own = [r for r in results if r["degrades"] == what and None not in r["claims"]["probe_minus_L"]]
        met = [r["arm"] for r in own if r["claims"]["probe_minus_L"][0] >= aim and r["claims"]["probe_minus_L"][1] > 0]
        named = f" ({', '.join(met)})" if met else ""
        text.append(
            f"Where the {what} is degraded, {aim} or more over L with the interval above zero: {len(met)} of {len(own)} arms{named}."
        )
    within = [r["within_position_and_type"]["scores"]["probe"][0] for r in results if r["within_position_and_type"]["pairs"]]
    text.append(f"At least .85 within type and position: {sum(v >= 0.85 for v in within)} of {len(within)} arms.")
    return text
