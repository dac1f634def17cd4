"""The plots of a report as SVG text, drawn from the report alone."""

from __future__ import annotations

import io
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

PROBE, BASE, GREY = "#0b6e4f", "#c8553d", "#8a8f98"
COLORS = (PROBE, BASE, "#3d5a80", "#e09f3e", "#7b506f", GREY)
_STYLE: Any = {"svg.fonttype": "none", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "introspect"}


def svg(figure: Figure) -> str:
    """A figure as an `<svg>` element, the same bytes for the same figure."""
    stream = io.StringIO()
    with mpl.rc_context(_STYLE):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]


def panels(count: int, height: float = 2.7, width: float = 3.0) -> tuple[Figure, list[Axes]]:
    """A row of equal plots."""
    figure = Figure(figsize=(width * count, height), layout="constrained")
    return figure, list(np.atleast_1d(figure.subplots(1, count)))


def risk_coverage_plot(report: dict[str, Any]) -> str:
    """Share of wrong answers among the most confident, by condition."""
    with mpl.rc_context(_STYLE):
        figure, axes = panels(len(report["conditions"]))
        for axis, (condition, facts) in zip(axes, report["conditions"].items(), strict=True):
            curves = report["answers"][condition]["risk_coverage"]
            for name, color in (("L", BASE), ("probe", PROBE)):
                axis.plot(*zip(*curves[name], strict=True), color=color, label=name)
            wrong = 1 - facts["right"]
            axis.axhline(wrong, color=GREY, lw=0.8, ls=":", label="in random order")
            coverage = np.linspace(0.01, 1, 100)
            axis.plot(coverage, np.maximum(0, 1 - (1 - wrong) / coverage), color=GREY, lw=0.8, ls="--", label="perfect order")
            axis.set(title=condition, xlabel="share of answers kept", ylim=(0, None), xlim=(0, 1))
        axes[0].set_ylabel("wrong among the kept")
        axes[0].legend(frameon=False, fontsize=8)
    return svg(figure)


def reliability_plot(report: dict[str, Any], part: str) -> str:
    """Predicted against observed, in bins of equal mass, by condition; `part` is `answers` or `claims`."""
    with mpl.rc_context(_STYLE):
        figure, axes = panels(len(report["conditions"]))
        for axis, condition in zip(axes, report["conditions"], strict=True):
            bins = report[part][condition]["reliability"]
            axis.plot([0, 1], [0, 1], color=GREY, lw=0.8, ls="--")
            predicted, observed = np.array([b["probability"] for b in bins]), np.array([b["rate"] for b in bins])
            error = 1.96 * np.sqrt(np.maximum(observed * (1 - observed), 1e-9) / np.array([b["count"] for b in bins]))
            axis.errorbar(predicted, observed, yerr=error, color=PROBE, fmt="o", ms=4, lw=1)
            axis.set(title=condition, xlabel="predicted", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        axes[0].set_ylabel("share of wrong claims" if part == "claims" else "share of right answers")
    return svg(figure)


def budget_plot(report: dict[str, Any]) -> str:
    """AUROC against the share of the prompt that was kept, with 95 % intervals."""
    parts = [("answers", "the answer is right", ("probe", "L", "min probability", "RAUQ"))]
    if "claims" in report:
        parts.append(("claims", "the claim is false (mean over types)", ("probe", "L", "attention alone", "max probability")))
    with mpl.rc_context(_STYLE):
        figure, axes = panels(len(parts), height=3.2, width=4.6)
        for axis, (part, title, names) in zip(axes, parts, strict=True):
            order = sorted(report["conditions"], key=lambda c: report["conditions"][c]["kept"])
            for shift, (name, color) in enumerate(zip(names, COLORS, strict=False)):
                values = np.array([_auroc(report, part, c, name) for c in order])
                place = np.arange(len(order)) + 0.12 * (shift - 1.5)
                low_high = np.abs(values[:, 1:].T - values[:, 0])
                axis.errorbar(place, values[:, 0], yerr=low_high, color=color, fmt="o", ms=4, lw=1.2, label=name)
            axis.set_xticks(range(len(order)), [f"{c}\n{report['conditions'][c]['kept']:.0%} kept" for c in order])
            axis.axhline(0.5, color=GREY, lw=0.8, ls=":")
            axis.set(title=title, ylabel="AUROC", ylim=(None, 1))
            axis.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1.08), ncols=2)
    return svg(figure)


def _auroc(report: dict[str, Any], part: str, condition: str, name: str) -> list[float]:
    own = report[part][condition]["auroc"]
    found = own["all"]["scores"].get(name) if part == "claims" else own.get(name)
    return [np.nan if value is None else value for value in found or [None] * 3]


def gain_plot(report: dict[str, Any]) -> str:
    """What attention adds to L: paired difference of AUROC with its 95 % interval, by claim type and condition."""
    rows = [
        (f"{condition}: {'mean over types' if kind == 'all' else kind}", own["probe_minus_L"], kind == "all")
        for condition, part in report["claims"].items()
        for kind, own in part["auroc"].items()
        if None not in own["probe_minus_L"]
    ]
    hidden = [
        (f"{condition}: attention added to L+H", own["auroc"]["all"]["L+H+attention_minus_L+H"], True)
        for condition, own in report["claims"].items()
        if None not in own["auroc"]["all"].get("L+H+attention_minus_L+H", [None])
    ]
    return _differences([*rows, *hidden, *_answer_differences(report)])


def answer_gain_plot(report: dict[str, Any]) -> str:
    """The same for right answers alone."""
    return _differences(_answer_differences(report))


def _answer_differences(report: dict[str, Any]) -> list[tuple[str, list[float], bool]]:
    rows = [(f"{c}: right answers", report["answers"][c]["probe_minus_L"], True) for c in report["conditions"]]
    return [row for row in rows if None not in row[1]]


def _differences(rows: list[tuple[str, list[float], bool]]) -> str:
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7.5, 0.6 + 0.22 * len(rows)), layout="constrained")
        axis = figure.subplots()
        for place, (_, (value, low, high), is_mean) in enumerate(reversed(rows)):
            color = PROBE if low > 0 else BASE if high < 0 else GREY
            axis.plot([low, high], [place, place], color=color, lw=2 if is_mean else 1)
            axis.plot(value, place, "D" if is_mean else "o", color=color, ms=5 if is_mean else 4)
        axis.axvline(0, color="black", lw=0.8)
        axis.set_yticks(range(len(rows)), [name for name, _, _ in reversed(rows)])
        axis.set_xlabel("AUROC of the probe minus AUROC of L")
    return svg(figure)


def position_plot(report: dict[str, Any]) -> str:
    """AUROC within bins of position in the answer, by condition."""
    with mpl.rc_context(_STYLE):
        figure, axes = panels(len(report["conditions"]))
        for axis, condition in zip(axes, report["conditions"], strict=True):
            bins = report["claims"][condition]["position_bins"]
            for name, color in (("position", GREY), ("L", BASE), ("probe", PROBE)):
                axis.plot(range(len(bins)), [b["auroc"][name] for b in bins], "o-", color=color, ms=3, lw=1, label=name)
            axis.axhline(0.5, color=GREY, lw=0.8, ls=":")
            labels = [str(b["first"]) if b["first"] == b["last"] else f"{b['first']}-{b['last']}" for b in bins]
            axis.set_xticks(range(len(bins)), labels, rotation=60, fontsize=7)
            axis.set(title=condition, xlabel="token of the answer", ylim=(0, 1.02))
        axes[0].set_ylabel("AUROC within the bin")
        axes[0].legend(frameon=False, fontsize=8)
    return svg(figure)


def heads_plot(own: dict[str, Any]) -> str:
    """Absolute weights by head, and by statistic, as `carriers.weights_of` gives them."""
    grid = np.array(own["heads"])
    statistics = list(own["statistics"].items())[:14]
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(9, max(2.6, 0.22 * len(statistics) + 0.8)), layout="constrained")
        left, right = figure.subplots(1, 2)
        image = left.imshow(grid, cmap="Greens", vmin=0, aspect="auto")
        left.set(title="by head", xlabel="head", ylabel="layer")
        left.set_xticks(_few(grid.shape[1]))
        left.set_yticks(_few(grid.shape[0]))
        figure.colorbar(image, ax=left, label="sum of |weights|")
        right.barh([n for n, _ in reversed(statistics)], [v for _, v in reversed(statistics)], color=PROBE)
        right.set(title="by statistic", xlabel="sum of |weights|")
    return svg(figure)


def _few(count: int) -> list[int]:
    """At most a dozen tick places."""
    return list(range(0, count, max(1, -(-count // 12))))
