"""Results of the studies as Markdown: on the terminal, and in the README."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from introspect_probes.studies.contrast import random_effects
from introspect_probes.studies.pooled_calibration import ALL, FILE, USUAL

AIM, NULL = 0.02, 0.01
"""The gain that was hoped for under eviction, and the largest that the control may show (issue 5)."""
_SETS = ("normalised", "lse", "retention", "all")
_SHORT = {"normalised": "normalised statistics", "lse": "lse", "retention": "retention", "all": "all of them"}


def read_results(folder: Path, order: Sequence[str]) -> list[dict[str, Any]]:
    """The result files of a study's folder, model by model, arms in the given order."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json")) if path.name != FILE]
    return sorted(found, key=lambda r: (r.get("model", {}).get("name", ""), list(order).index(r["arm"])))


def with_interval(triple: Sequence[float | None], signed: bool = False) -> str:
    """Value and 95 % interval; a dash where it could not be had."""
    if any(x is None for x in triple):
        return "-"
    sign = "+" if signed else ""
    return "{:{f}} [{:{f}}, {:{f}}]".format(*triple, f=f"{sign}.3f")


def kernel_only_table(results: Sequence[dict[str, Any]]) -> str:
    """The study's arms, for each kind of model: what S adds to the better of L and L+H, with what was done to make it vanish.

    Models that differ in their number only (`study-1`, `study-2`) are seeds of one kind; they are told together.
    """
    parts = []
    for kind in dict.fromkeys(_kind(r) for r in results):
        own = [r for r in results if _kind(r) == kind]
        seeds = list(dict.fromkeys(r["model"]["name"] for r in own))
        tests = {r["cases"]["test"]["answers"] for r in own}
        cases = f"{', '.join(f'{n:,}' for n in sorted(tests))} test cases an arm"
        if len(seeds) > 1:
            parts += [
                f"{len(seeds)} seeds of the model `{kind}`, {cases} and seed.{_training(own)}",
                _over_seeds(own),
                _aim_over_seeds(own),
            ]
        else:
            one = "One model seed, so nothing is said of the variation between seeds."
            parts += [f"Model `{seeds[0]}`: {cases}. {one}", _gains(own), _checks(own), _verdict(own)]
    return "\n\n".join(parts)


def _kind(result: dict[str, Any]) -> str:
    return re.sub(r"-\d+$", "", result["model"]["name"])


def _training(results: Sequence[dict[str, Any]]) -> str:
    """How well the seeds read, from their training records."""
    found = {r["model"]["name"]: r["model"]["accuracy"]["digit_at"] for r in results if "accuracy" in r["model"]}
    if not found:
        return ""
    return (
        f" They read {min(found.values()):.1%} to {max(found.values()):.1%} of held-out digits in a named cell (full cache, all pictures)."
    )


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
    """Random effects over model seeds, arm by arm."""
    head = ["arm", "seeds", "right", "L", "L+H", *(f"+ {_SHORT[s]}" for s in _SETS), "network: + lse", "lse within deciles of L"]
    head.append("lse permuted, largest")
    body = []
    for arm in dict.fromkeys(r["arm"] for r in results):
        own = [r for r in results if r["arm"] == arm]
        within = [r["within_deciles"]["lse"] for r in own if r["within_deciles"]["lse"]]
        permuted = [r["permuted"]["lse"]["largest"] for r in own if r["permuted"]["lse"]["times"]]
        body.append(
            [
                arm,
                str(len(own)),
                f"{np.mean([r['cases']['test']['right'] for r in own]):.1%}",
                *(f"{np.mean([r['auroc'][name][0] for r in own]):.3f}" for name in ("L", "L+H")),
                *(_random_effects([r["delta"][s] for r in own]) for s in _SETS),
                _random_effects([r["delta_network"]["lse"] for r in own]),
                _random_effects(within),
                f"{max(permuted):+.3f}" if permuted else "-",
            ]
        )
    return "Means over seeds, and differences with random effects over seeds:\n\n" + markdown_table(head, body)


def _random_effects(entries: Sequence[dict[str, Any]]) -> str:
    known = [e for e in entries if None not in e["difference"]]
    if len(known) < 2:
        return "-"
    effect = random_effects([e["difference"][0] for e in known], [e["standard_error"] for e in known])
    return with_interval([effect["mean"], effect["low"], effect["high"]], signed=True)


def _aim_over_seeds(results: Sequence[dict[str, Any]]) -> str:
    """The aim, arm by arm: seeds with a gain of `AIM` and more whose lower bound is above zero; for controls, seeds within `NULL`."""
    head = ["arm", *(f"{_SHORT[s]}: seeds" for s in _SETS), "aim"]
    body = []
    for arm in dict.fromkeys(r["arm"] for r in results):
        own = [r for r in results if r["arm"] == arm]
        values = {s: [r["delta"][s]["difference"] for r in own] for s in _SETS}
        if own[0]["noise"] is None:
            counts = {s: sum(v >= AIM and low > 0 for v, low, _ in values[s]) for s in _SETS}
            met = [_SHORT[s] for s in _SETS if counts[s] >= 0.8 * len(own)]
            told = f"met by {', '.join(met)}" if met else "missed"
        else:
            counts = {s: sum(abs(v) < NULL for v, _, _ in values[s]) for s in _SETS}
            missed = [_SHORT[s] for s in _SETS if counts[s] < len(own)]
            told = f"not within {NULL} in every seed: {', '.join(missed)}" if missed else f"within {NULL} in every seed"
        body.append([arm, *(f"{counts[s]} of {len(own)}" for s in _SETS), told])
    text = f"Seeds with a gain of at least {AIM} and the interval above zero (aim: four of five); in the controls, within {NULL} of zero:"
    return text + "\n\n" + markdown_table(head, body)


def markdown_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table of a head and rows of cells."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *body))


def free_running_table(results: Sequence[dict[str, Any]], pooled: dict[str, Any]) -> str:
    """False claims in free-running answers: the frozen probe set against L, which aims were met, and calibration over arms."""
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
    calibration = [_calibration(name, pooled[name]) for name in (USUAL, ALL) if name in pooled]
    return markdown_table(head, body) + "\n\n" + " ".join([*_aims(results), *calibration])


def _calibration(name: str, own: dict[str, Any]) -> str:
    confidence, risk = own["confidence"], own["risk"]
    low, high = confidence["intervals"]["ece"][1:]
    return (
        f"Debiased calibration error over {name}: {confidence['ece']:.3f} [{low:.3f}, {high:.3f}] of the confidence of "
        f"{confidence['count']:,} answers (aim: .03 over 10,000), {risk['ece']:.3f} of the risk of {risk['count']:,} claims."
    )


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
