"""A report as tables: on the terminal, and in the README."""

from __future__ import annotations

from statistics import mean, stdev
from typing import Any

SCORE_ORDER = ("position", "question type", "max probability", "mean logprob", "entropy", "L", "attention alone", "probe")


def _cell(value: list[float]) -> str:
    return f"{value[0]:.3f} [{value[1]:.3f}, {value[2]:.3f}]"


def _spread(values: list[float]) -> str:
    """Mean and standard deviation over repetitions."""
    return f"{mean(values):.3f} (standard deviation {stdev(values):.3f} over {len(values)} shuffles)"


def claims_table(report: dict[str, Any], condition: str) -> str:
    """AUROC with 95 % intervals of every score by claim type, as Markdown; higher is better, .5 is chance."""
    rows = report["claims"][condition]["auroc"]
    head = f"| claims | false of all | {' | '.join(SCORE_ORDER)} | probe - L |"
    lines = [head, "|" + "---|" * (len(SCORE_ORDER) + 3)]
    for kind, row in rows.items():
        name = "**all** (mean over types)" if kind == "all" else kind
        cells = [f"**{_cell(row['scores'][s])}**" if s == "probe" else _cell(row["scores"][s]) for s in SCORE_ORDER]
        lines.append(f"| {name} | {row['false']:,} of {row['claims']:,} | {' | '.join(cells)} | {_cell(row['probe_minus_L'])} |")
    return "\n".join(lines)


def answers_table(report: dict[str, Any]) -> str:
    """AUROC of confidence and its baselines by condition, with the calibration of confidence, as Markdown."""
    conditions = list(report["conditions"])
    names = list(report["answers"][conditions[0]]["auroc"])
    lines = ["| score | " + " | ".join(conditions) + " |", "|" + "---|" * (len(conditions) + 1)]
    for name in names:
        cells = [_cell(report["answers"][c]["auroc"][name]) for c in conditions]
        shown = f"**{name} (confidence)**" if name == "probe" else name
        lines.append(f"| {shown} | {' | '.join(cells)} |")
    errors = [f"{report['answers'][c]['confidence']['ece']:.3f}" for c in conditions]
    lines.append(f"| calibration error of confidence (debiased: 0 is below the noise) | {' | '.join(errors)} |")
    return "\n".join(lines)


def conditions_table(report: dict[str, Any]) -> str:
    """What was kept of the cache and how often the model was right, by condition, as Markdown."""
    lines = [
        "| condition | prompt kept | answers | right | claims | false | calibration error of the risk |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, facts in report["conditions"].items():
        lines.append(
            f"| {name} | {facts['kept']:.0%} | {facts['answers']:,} | {facts['right']:.1%} | {facts['claims']:,} | {facts['false']:.1%} | "
            f"{report['claims'][name]['risk']['ece']:.3f} |"
        )
    return "\n".join(lines)


def strategy_lines(report: dict[str, Any]) -> str:
    """The strategy probe in a few lines of Markdown."""
    facts = report["strategy"]
    if not facts.get("claims"):
        return "No claim of the test traces has a causal label."
    counts = ", ".join(f"{name} {count}" for name, count in facts["counts"].items())
    coverage = ", ".join(f"{name} {value:.2f}" for name, value in facts["set_coverage"].items())
    return (
        f"- {facts['claims']:,} test claims with a single cause ({counts}), of {facts['measured']:,} measured\n"
        f"- macro-F1 {facts['macro_f1']:.3f}; the claim's type alone gives {facts['type_only_macro_f1']:.3f}; "
        f"the labels agree with themselves across disjoint donors on {facts['label_agreement_across_donors']:.1%}\n"
        f"- conformal sets: {facts['singletons']:.1%} hold one state; coverage by state: {coverage}"
    )


def domain_line(report: dict[str, Any]) -> str:
    """How prompts outside the world are told, in a line of Markdown."""
    facts = report["domain"]
    if not facts.get("outside"):
        return "No prompts from outside the world were recorded."
    return (
        f"{facts['outside']:,} prompts with photographs, textures or words that the fit never met, "
        f"against {facts['inside']:,} of the world: "
        f"AUROC {facts['auroc']:.3f}; {facts['outside_told']:.1%} told as outside, {facts['inside_kept']:.1%} of the world's kept"
    )


def summary(report: dict[str, Any]) -> str:
    """The whole report as Markdown."""
    parts = [f"# Probe set {report['probe_set']}", conditions_table(report)]
    for condition in report["conditions"]:
        calibration = report["claims"][condition]["risk"]
        within = report["claims"][condition]["within_position"]
        parts += [
            f"## False claims, {condition}",
            claims_table(report, condition),
            (
                f"Calibration error of the risk {calibration['ece']:.3f}; Brier {calibration['brier']:.3f}; "
                f"AUROC within position bins: probe {within['probe']:.3f}, L {within['L']:.3f}; "
                f"fitted on shuffled labels: {_spread(report['claims'][condition]['shuffled_labels'])}."
            ),
        ]
    parts += ["## Right answers", answers_table(report), "## Strategy", strategy_lines(report), "## Outside", domain_line(report)]
    return "\n\n".join(parts)
