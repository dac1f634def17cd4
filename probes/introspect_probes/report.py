"""A report as tables: on the terminal, and in the README."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import mean, stdev
from typing import Any

SCORE_ORDER = ("position", "question type", "max probability", "mean logprob", "entropy", "L", "attention alone", "probe")
_UNKNOWN: list[float | None] = [None]


def _cell(value: list[float | None]) -> str:
    """Value and interval; a dash where it could not be had."""
    if None in value:
        return "-" if value[0] is None else f"{value[0]:.3f}"
    return f"{value[0]:.3f} [{value[1]:.3f}, {value[2]:.3f}]"


def _names(parts: Iterable[dict[str, Any]]) -> list[str]:
    """Scores of any condition, the probe last; some need what was recorded under some conditions only."""
    return sorted(dict.fromkeys(name for part in parts for name in part), key=lambda name: name == "probe")


def _spread(values: list[float]) -> str:
    """Mean and standard deviation over repetitions."""
    if len(values) < 2:
        return "not to be had, all claims have one label"
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


def baselines_table(report: dict[str, Any]) -> str:
    """Mean AUROC over claim types of every score, by condition and over all of them together, as Markdown."""
    parts = {
        **{c: part["auroc"]["all"]["scores"] for c, part in report["claims"].items()},
        "all together": report["claims_pooled"]["scores"],
    }
    lines = ["| score | " + " | ".join(parts) + " |", "|" + "---|" * (len(parts) + 1)]
    for name in _names(parts.values()):
        cells = [_cell(own.get(name, _UNKNOWN)) for own in parts.values()]
        lines.append(f"| {f'**{name}**' if name == 'probe' else name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def controls_table(report: dict[str, Any]) -> str:
    """What is left when position, type, or either's luck is taken away, by condition, as Markdown."""
    claims = report["claims"]
    names = ["L", *(["L+H"] if any("L+H" in c["auroc"]["all"]["scores"] for c in claims.values()) else []), "probe"]
    lines = ["| figure | " + " | ".join(claims) + " |", "|" + "---|" * (len(claims) + 1)]
    for name in names:
        cells = [_cell(c["within_position_and_type"].get("scores", {}).get(name, _UNKNOWN)) for c in claims.values()]
        lines.append(f"| {name} within type and position bin | {' | '.join(cells)} |")
    pairs = {"probe - L": "probe_minus_L", "probe - L, two-way bootstrap": "probe_minus_L_two_way", "probe - L+H": "probe_minus_L+H"}
    pairs["attention added to L+H"] = "L+H+attention_minus_L+H"
    for title, key in pairs.items():
        if any(key in c["auroc"]["all"] for c in claims.values()):
            lines.append(f"| {title} | {' | '.join(_cell(c['auroc']['all'].get(key, _UNKNOWN)) for c in claims.values())} |")
    for metric in ("brier", "log_loss", "ece"):
        for title, own in (("class prior", "class prior"), ("L", "L")):
            if all(own in c["calibrated_baselines"] for c in claims.values()):
                cells = [f"{c['calibrated_baselines'][own][metric]:.3f}" for c in claims.values()]
                lines.append(f"| {_CALIBRATION[metric]}, {title} | {' | '.join(cells)} |")
        own_cells = [f"{c['risk'][metric]:.3f}" for c in claims.values()]
        lines.append(f"| {_CALIBRATION[metric]}, probe | {' | '.join(own_cells)} |")
    return "\n".join(lines)


def answers_table(report: dict[str, Any]) -> str:
    """AUROC of confidence and its baselines by condition, with the calibration of confidence, as Markdown."""
    conditions = list(report["conditions"])
    lines = ["| score | " + " | ".join(conditions) + " |", "|" + "---|" * (len(conditions) + 1)]
    for name in _names(report["answers"][c]["auroc"] for c in conditions):
        cells = [_cell(report["answers"][c]["auroc"].get(name, _UNKNOWN)) for c in conditions]
        shown = f"**{name} (confidence)**" if name == "probe" else name
        lines.append(f"| {shown} | {' | '.join(cells)} |")
    for name in _names(report["answers"][c].get("of_some", {}) for c in conditions):
        parts = [report["answers"][c].get("of_some", {}).get(name) for c in conditions]
        cells = ["-" if part is None else _of_some(part, name) for part in parts]
        lines.append(f"| {name}, of the answers that have it | {' | '.join(cells)} |")
    errors = [f"{report['answers'][c]['confidence']['ece']:.3f}" for c in conditions]
    lines.append(f"| calibration error of confidence (debiased: 0 is below the noise) | {' | '.join(errors)} |")
    return "\n".join(lines)


def _of_some(part: dict[str, Any], name: str) -> str:
    """A score that only some answers have, beside the probe on the same."""
    return f"{_cell(part['auroc'][name])} of {part['answers']:,}, probe {_cell(part['auroc']['probe'])}"


def conditions_table(report: dict[str, Any]) -> str:
    """What was kept of the cache and how often the model was right, by condition, as Markdown."""
    lines = [
        "| condition | prompt kept | answers | right | claims | false | calibration error of the risk |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, facts in report["conditions"].items():
        false = "-" if not facts["claims"] else f"{facts['false']:.1%}"
        error = f"{report['claims'][name]['risk']['ece']:.3f}" if "claims" in report else "-"
        lines.append(
            f"| {name} | {facts['kept']:.0%} | {facts['answers']:,} | {facts['right']:.1%} | {facts['claims']:,} | {false} | {error} |"
        )
    return "\n".join(lines)


_CALIBRATION = {
    "base_rate": "base rate", "average_precision": "AUPR", "tpr_at_1_fpr": "TPR at 1 % FPR", "tpr_at_5_fpr": "TPR at 5 % FPR",
    "brier": "Brier", "log_loss": "log loss", "ece": "ECE (debiased)",
}  # fmt: skip
_SELECTIVE = {"aurc": "AURC", "augrc": "AUGRC", "prr": "PRR"}


def calibration_table(report: dict[str, Any], part: str) -> str:
    """Metrics of a published probability by condition, as Markdown; `part` is `answers` (confidence) or `claims` (risk)."""
    name = "confidence" if part == "answers" else "risk"
    return _metrics_table({c: report[part][c][name] for c in report["conditions"]}, _CALIBRATION)


def selective_table(report: dict[str, Any]) -> str:
    """Metrics of refusing the least confident answers by condition, as Markdown."""
    return _metrics_table({c: report["answers"][c]["confidence"] for c in report["conditions"]}, _SELECTIVE)


def _metrics_table(rows: dict[str, dict[str, Any]], names: dict[str, str]) -> str:
    lines = [f"| condition | {' | '.join(names.values())} |", "|" + "---|" * (len(names) + 1)]
    for condition, own in rows.items():
        intervals = own.get("intervals", {})
        cells = [_cell(intervals[n]) if n in intervals else f"{own[n]:.3f}" if n in own else "-" for n in names]
        lines.append(f"| {condition} | {' | '.join(cells)} |")
    return "\n".join(lines)


def caches_named(caches: str) -> str:
    """Of which answers something is promised, in words that follow 'answers'."""
    return {"whole": " under the whole cache", "reduced": " under a reduced cache"}.get(caches, "")


def guarantee_line(report: dict[str, Any]) -> str:
    """The guarantee and what became of it, in a line of Markdown."""
    own = report["guarantee"]
    met = "none was accepted" if own["test_risk"] is None else f"{own['test_risk']:.1%} of the {own['test_accepted']:,} accepted were wrong"
    which = caches_named(own.get("caches", "any"))
    return (
        f"With probability {1 - own['delta']:.0%} over its choice, at most {own['target_risk']:.1%} of answers{which} with a confidence of "
        f"at least {own['threshold']:g} are wrong (chosen on {own['groups']:,} groups, one random answer each). "
        f"Of {own['test_answers']:,} test answers{which} {met}."
    )


def strategy_lines(report: dict[str, Any]) -> str:
    """The strategy probe in a few lines of Markdown."""
    facts = report["strategy"]
    if not facts.get("claims"):
        return "No claim of the test traces has a causal label."
    counts = ", ".join(f"{name} {count}" for name, count in facts["counts"].items())
    coverage = ", ".join(f"{name} {value:.2f}" for name, value in facts["set_coverage"].items())
    unmet = facts.get("within_templates_unmet", {"templates": {}})
    return (
        f"- {facts['claims']:,} test claims with a single cause ({counts}), of {facts['measured']:,} measured\n"
        f"- macro-F1 {facts['macro_f1']:.3f}; the claim's type alone gives {facts['type_only_macro_f1']:.3f}; "
        f"the labels agree with themselves across disjoint donors on {facts['label_agreement_across_donors']:.1%}\n"
        f"- conformal sets: {facts['singletons']:.1%} hold one state{_right_singletons(facts)}; coverage by state: {coverage}"
        + _within_templates("within templates", facts["within_templates"])
        + (_within_templates("the same without people and pictures that the fit met,", unmet) if unmet["templates"] else "")
    )


def _right_singletons(facts: dict[str, Any]) -> str:
    value = facts["accuracy_of_singletons"]
    return "" if value is None else f", of which {value:.1%} are right"


def _within_templates(which: str, own: dict[str, Any]) -> str:
    """The figure that the question's type cannot give away, and what it is made of, in lines of Markdown."""
    if not own["templates"]:
        return "\n- no template has claims of two states, so nothing is said of what the question's type does not give away"
    parts = "".join(f"\n- of these, `{name}`: {_template(part)}" for name, part in own["templates"].items())
    return (
        f"\n- {which} macro-F1 {_cell(own['macro_f1'])}; labels of one half of the donors against the other half's "
        f"{_cell(own['ceiling'])}; share of that ceiling {_cell(own['of_ceiling'])}{parts}"
    )


def _template(part: dict[str, Any]) -> str:
    """One template; its ceiling and states are in reports made since they are kept."""
    ceiling = f", ceiling {part['ceiling']:.3f}" if part.get("ceiling") is not None else ""
    states = ", ".join(f"{name} {own['f1']:.2f} of {own['claims']:,}" for name, own in part.get("states", {}).items())
    return f"{part['macro_f1']:.3f} of {part['claims']:,} claims{ceiling}{f'; F1 by state: {states}' if states else ''}"


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
    for condition in report["conditions"] if "claims" in report else ():
        calibration = report["claims"][condition]["risk"]
        within = report["claims"][condition]["within_position"]
        positions = f"AUROC within position bins: probe {within['probe']:.3f}, L {within['L']:.3f}; " if within else ""
        parts += [
            f"## False claims, {condition}",
            claims_table(report, condition),
            (
                f"Calibration error of the risk {calibration['ece']:.3f}; Brier {calibration['brier']:.3f}; {positions}"
                f"fitted on shuffled labels: {_spread(report['claims'][condition]['shuffled_labels'])}."
            ),
        ]
    if "claims" in report:
        parts += ["## False claims, every baseline", baselines_table(report), "## False claims, controls", controls_table(report)]
    parts += ["## Right answers", answers_table(report)]
    if "strategy" in report:
        parts += ["## Strategy", strategy_lines(report)]
    if "domain" in report:
        parts += ["## Outside", domain_line(report)]
    if "guarantee" in report:
        parts += ["## Guarantee", guarantee_line(report)]
    if report.get("absent"):
        parts += ["## Absent", "\n".join(f"- {name.replace('_', ' ')}: {reason}" for name, reason in report["absent"].items())]
    return "\n\n".join(parts)
