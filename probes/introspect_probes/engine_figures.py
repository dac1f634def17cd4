"""Pictures of what the engine's studies found; each is drawn from its JSON and from nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

from introspect.policies import RECOMMENDED

_STYLES = ("o-", "s-", "^-", "v-", "D-", "P-", "X-", "*-", "<-", ">-")
_COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:purple", "tab:brown", "tab:olive", "tab:cyan", "tab:gray")


def draw_heads(scores: Sequence[Sequence[float]], path: Path, model: str) -> None:
    """The map of layers and heads, each cell the head's share of the visual score."""
    figure, axes = plt.subplots(figsize=(max(4.0, 0.32 * len(scores[0]) + 1.6), max(2.6, 0.26 * len(scores) + 1.2)), layout="constrained")
    shown = axes.imshow(scores, cmap="viridis", aspect="auto", vmin=0)
    axes.set(xlabel="query head", ylabel="layer", title=f"visual heads of {model}")
    axes.set_xticks(range(0, len(scores[0]), max(1, len(scores[0]) // 16)))
    axes.set_yticks(range(0, len(scores), max(1, len(scores) // 16)))
    figure.colorbar(shown, label="share of the visual score")
    figure.savefig(path, dpi=120, metadata={"Software": None})
    plt.close(figure)


def draw_ablation(result: dict[str, Any], path: Path) -> None:
    """Accuracy on picture questions and on learned facts while more and more heads are silenced, with 95 % intervals."""
    panels = {"picture": "questions about the picture", "facts": "learned facts, no picture"}
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    for (key, title), panel in zip(panels.items(), axes, strict=True):
        for style, (name, label) in zip(("o-", "s--"), (("visual", "top visual heads"), ("random", "as many random heads")), strict=True):
            rows = [row for row in result["rows"] if row["heads"] == name or row["silenced"] == 0]
            _line(panel, [row["silenced"] for row in rows], [row[key] for row in rows], style, label)
        panel.set(title=title, xlabel=f"heads silenced, of {result['heads_in_all']}", ylim=(0, 1.02))
        panel.grid(alpha=0.3)
    axes[0].set_ylabel("accuracy")
    axes[0].legend()
    figure.savefig(path, dpi=120, metadata={"Software": None})
    plt.close(figure)


def draw_accuracy(result: dict[str, Any], path: Path) -> None:
    """Exact match and claim-level false rate against the share of the prompt that is kept, one line a policy."""
    measures = {
        "wrong": "false or left out, descriptions",
        "false_rate": "false claims, descriptions",
        "exact_other": "exact match, other questions",
    }
    figure, axes = plt.subplots(1, 3, figsize=(14, 4.8), layout="constrained")
    for (key, title), panel in zip(measures.items(), axes, strict=True):
        for i, policy in enumerate(result["policies"]):
            rows = [row for row in result["rows"] if row["policy"] in (policy, "full")]
            bold = {"random": "black", RECOMMENDED: "crimson"}
            look = {"color": bold[policy], "lw": 2.4, "zorder": 5} if policy in bold else {"color": _COLORS[i % len(_COLORS)]}
            _line(panel, [row["ratio"] for row in rows], [row[key] for row in rows], _STYLES[i % len(_STYLES)], policy, **look)
        panel.set(title=title, xlabel="share of the prompt kept, and entries per KV head", xscale="log", ylim=(0, None))
        kept = {row["ratio"]: row["effective"] for row in result["rows"]}
        panel.set_xticks(list(kept), [f"{ratio:.0%}\n{entries:.0f}" for ratio, entries in kept.items()])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=9)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    plt.close(figure)


def draw_coverage(result: dict[str, Any], path: Path) -> None:
    """False claims and objects left out, arm by arm at each ratio, and for eviction in one layer at a time."""
    figure, axes = plt.subplots(1, 2, figsize=(13, 4.2), layout="constrained", width_ratios=(1.5, 1))
    ratios = sorted({row["ratio"] for row in result["rows"]} - {1.0}, reverse=True)
    for panel, names in zip(axes, (result["policies"], result["layers"]), strict=True):
        for shift, ratio, color in zip((0.14, -0.14), ratios, ("tab:blue", "crimson"), strict=False):
            rows = [row for row in result["rows"] if row["policy"] in names and row["ratio"] == ratio]
            y = [names.index(row["policy"]) + shift for row in rows]
            values = [row["wrong"] for row in rows]
            off = [[v - low for v, low, _ in values], [high - v for v, _, high in values]]
            if rows:
                panel.errorbar([v for v, _, _ in values], y, xerr=off, fmt="o", capsize=3, color=color, label=f"{ratio:.0%} of the prompt")
        panel.set_yticks(range(len(names)), names)
        panel.set(xlabel="false claims and objects left out, of all", xlim=(0, None))
        panel.invert_yaxis()
        panel.grid(alpha=0.3)
    axes[0].set_title("each part taken away")
    axes[1].set_title("eviction in one layer only")
    axes[0].legend()
    figure.savefig(path, dpi=120, metadata={"Software": None})
    plt.close(figure)


def _line(panel: Any, x: Sequence[float], triples: Sequence[Sequence[float]], style: str, label: str, **look: Any) -> None:
    """Values with their intervals, in order of x."""
    order = sorted(range(len(x)), key=lambda i: x[i])
    value, low, high = ([triples[i][part] for i in order] for part in range(3))
    below = [max(0.0, v - b) for v, b in zip(value, low, strict=True)]
    above = [max(0.0, a - v) for v, a in zip(value, high, strict=True)]
    panel.errorbar([x[i] for i in order], value, yerr=(below, above), fmt=style, capsize=2, label=label, **{"ms": 4, "lw": 1.2, **look})
