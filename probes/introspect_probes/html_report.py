"""The report as one HTML page that needs nothing else: plots as SVG, pictures inlined, no scripts."""

from __future__ import annotations

import base64
import re
from importlib.resources import files
from typing import Any

from jinja2 import Environment

from introspect_probes import figures
from introspect_probes.report import (
    answers_table,
    baselines_table,
    calibration_table,
    claims_table,
    conditions_table,
    controls_table,
    domain_line,
    guarantee_line,
    selective_table,
    strategy_lines,
)
from introspect_probes.telling_cases import ShownCase, ShownToken


def html_report(report: dict[str, Any], cases: list[ShownCase]) -> str:
    """The whole page.

    Args:
        report: what `evaluation.evaluate` makes.
        cases: answers to show, with their pictures.
    """
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((files("introspect_probes") / "report.html.jinja").read_text(encoding="utf-8"))
    return template.render(
        report=report,
        headline=headline(report),
        sections=sections(report),
        cases=[_shown(case) for case in cases],
    )


def headline(report: dict[str, Any]) -> list[tuple[str, str]]:
    """A few figures to begin with: value and what it is."""
    found = []
    for condition in report["conditions"]:
        found += _compared("AUROC of confidence", condition, report["answers"][condition]["auroc"])
    for condition, part in report.get("claims", {}).items():
        found += _compared("AUROC of false claims", condition, part["auroc"]["all"]["scores"])
    return found


def _compared(what: str, condition: str, scores: dict[str, list[float | None]]) -> list[tuple[str, str]]:
    probe, base = scores["probe"][0], scores["L"][0]
    return [] if probe is None or base is None else [(f"{probe:.3f}", f"{what}, {condition} (L: {base:.3f})")]


def sections(report: dict[str, Any]) -> list[dict[str, str]]:
    """Title, one sentence on how to read it, and HTML of every part that the report has."""
    made = [
        _section("Conditions", "Under which budgets the answers were made.", table_html(conditions_table(report))),
        _section(
            "Risk and coverage",
            "Refuse the least confident answers: how many of the kept ones are wrong. Lower is better.",
            figures.risk_coverage_plot(report) + table_html(selective_table(report)),
        ),
        _section(
            "Reliability of confidence",
            "A calibrated probability lies on the diagonal. Bins of equal mass; bars are 95 % of binomial noise.",
            figures.reliability_plot(report, "answers") + table_html(calibration_table(report, "answers")),
        ),
    ]
    if "claims" in report:
        made.append(
            _section(
                "Reliability of hallucination risk",
                "The same for the risk that a claim is false.",
                figures.reliability_plot(report, "claims") + table_html(calibration_table(report, "claims")),
            )
        )
    made += [
        _section("AUROC against budget", "Points with 95 % intervals (bootstrap over groups).", figures.budget_plot(report)),
        _section(
            "What attention adds to L",
            "L is a regression on all logit statistics with position, repetition, type and budget, fitted and tuned on the same answers. "
            "Green: the interval is above zero; red: below. L+H, with hidden states of every layer, is compared where they were recorded.",
            figures.gain_plot(report) if "claims" in report else figures.answer_gain_plot(report),
        ),
    ]
    made += [
        _section(
            f"Which heads and which statistics carry it, {cache}",
            f"Weights of the probe of {report['carriers']['probe']}, in nats of log-odds for each standard deviation; "
            f"{own['used']:,} of {own['of']:,} head features have one. Correlated features share weight, "
            "so this says what the probe reads, not what causes the answer.",
            figures.heads_plot(own),
        )
        for cache, own in report["carriers"]["weights"].items()
    ]
    if "claims" in report:
        made.append(
            _section(
                "Within position bins",
                "Ten bins of equal mass; those with one label only are left out. Position alone must fail here.",
                figures.position_plot(report),
            )
        )
        made += [
            _section(
                f"Per claim type, {condition}", "AUROC with 95 % intervals; .5 is chance.", table_html(claims_table(report, condition))
            )
            for condition in report["claims"]
        ]
        made += [
            _section(
                "Every baseline of false claims",
                "AUROC, mean over claim types, fitted and tuned on the same answers as the probe. .5 is chance.",
                table_html(baselines_table(report)),
            ),
            _section(
                "Controls",
                "Within pairs of claim type and position bin; under a bootstrap of groups and of cases; and as probabilities.",
                table_html(controls_table(report)),
            ),
        ]
    made.append(_section("Right answers", "AUROC of confidence and of every baseline.", table_html(answers_table(report))))
    if "strategy" in report:
        made.append(_section("Strategy", "Against causal labels.", _lines(strategy_lines(report))))
    if "domain" in report:
        made.append(_section("Outside", "Prompts that the probes were not fitted on.", _lines(domain_line(report))))
    if "guarantee" in report:
        made.append(_section("Guarantee", "Void where answers come from elsewhere.", _lines(guarantee_line(report))))
    return made


def _section(title: str, reading: str, body: str) -> dict[str, str]:
    return {"title": title, "reading": reading, "body": body}


def table_html(markdown: str) -> str:
    """A Markdown table as HTML; bold cells stay bold. Numbers align right."""
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in markdown.splitlines() if not line.startswith("|---")]
    head, body = rows[0], rows[1:]
    lines = ["<div class=scroll><table><thead><tr>", *(f"<th>{_cell(c)}</th>" for c in head), "</tr></thead><tbody>"]
    for row in body:
        lines += ["<tr>", *(f"<td>{_cell(c)}</td>" for c in row), "</tr>"]
    return "".join([*lines, "</tbody></table></div>"])


def _cell(text: str) -> str:
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    bold = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", escaped)
    return re.sub(r"(\[[^\]]+\])", r"<small>\1</small>", bold)


def _lines(markdown: str) -> str:
    return "".join(f"<p>{_cell(line.removeprefix('- '))}</p>" for line in markdown.splitlines())


def _shown(case: ShownCase) -> dict[str, Any]:
    trace = case.trace
    picture = None if trace.picture is None else base64.b64encode(trace.picture).decode()
    return {**case.facts(), "picture": picture, "tokens": [_token(token) for token in case.tokens]}


def _token(token: ShownToken) -> dict[str, Any]:
    """Text, shade (risk where the token decides a claim, else 1 - probability, paler) and what to say when pointed at."""
    said = f"p = {token.probability:.3f}"
    if token.risk is not None:
        said += f", risk {token.risk:.3f}"
    if token.is_false is not None:
        said += ", false" if token.is_false else ", true"
    shade = token.risk if token.risk is not None else 0.4 * (1 - token.probability)
    return {"text": token.text, "shade": round(shade, 3), "said": said, "claim": token.risk is not None, "false": token.is_false}
