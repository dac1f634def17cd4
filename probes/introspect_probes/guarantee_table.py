"""Pools drawn anew, as Markdown."""

from __future__ import annotations

from typing import Any


def guarantee_table(row: dict[str, Any]) -> str:
    """How often each promise was broken, by what was drawn anew."""
    lines = [
        f"Probe set `{row['probe_set']}`. Runs are of {row['run']} neighbouring images. Refused draws break nothing and count.",
        "",
        "| promise | of answers under | drawn anew | rule | units | refused | broken | threshold | accepted | wrong on the other side |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for case in row["cases"]:
        value, low, high = case["share_broken"]
        units = case.get("units", case["groups"])
        cells = [
            f"{case['target_risk']:.0%}, delta {case['delta']:g}", case["conditions"], case["drawn"], case["rule"], f"{units:,}",
            f"{case['refused'] / case['redraws']:.0%}", f"{value:.1%} [{low:.1%}, {high:.1%}]",
            _cell(case["median_threshold"], ".2f"), _cell(case["median_accepted"], ".0%"), _cell(case["median_risk"], ".1%"),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
