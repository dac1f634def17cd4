"""Results of the studies as Markdown: on the terminal, and in the README."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from introspect_probes.studies.contrast import random_effects

AIM, NULL = 0.02, 0.01
"""The gain that was hoped for under eviction, and the largest that the control may show (issue 5)."""
_SETS = ("normalised", "lse", "retention", "all")
_SHORT = {"normalised": "normalised statistics", "lse": "lse", "retention": "retention", "all": "all of them"}


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
    return _table(head, body)


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
    return _table(head, body)


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
    return "Random effects over model seeds:\n\n" + _table(head, body)


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *body))
