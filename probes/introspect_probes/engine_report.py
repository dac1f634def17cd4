"""The engine's committed figures in Markdown, for its README; from the rows and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from introspect_probes.engine_study import FILES

_MEGA = 1_000_000


def blocks(folder: Path) -> dict[str, str]:
    """Each study's block by name, `engine-accuracy` and so on, from the result files in a folder."""
    makers = {"accuracy": accuracy_table, "why": why_table, "heads": heads_table, "cpu": cpu_tables}
    found = {study: folder / f"{FILES[study]}.json" for study in FILES}
    return {
        f"engine-{study}": makers[study](json.loads(path.read_text(encoding="utf-8"))) for study, path in found.items() if path.is_file()
    }


def accuracy_table(result: dict[str, Any]) -> str:
    """Policies against ratios: false claims and objects left out, then short questions; the best of each column in bold."""
    ratios = sorted({row["ratio"] for row in result["rows"]} - {1.0}, reverse=True)
    rows = {(row["policy"], row["ratio"]): row for row in result["rows"]}
    full = rows["full", 1.0]
    entries = {ratio: rows[result["policies"][0], ratio]["effective"] for ratio in ratios}
    lines = [
        (
            f"False claims and objects left out, of all claims and objects of {result['cases']['descriptions']} descriptions "
            f"(whole cache, {full['effective']:.0f} entries: {_cell(full['wrong'])}):"
        ),
        "",
        _table(result["policies"], ratios, entries, lambda p, r: rows[p, r]["wrong"], best=min),
        "",
        f"False claims alone (whole cache: {_cell(full['false_rate'])}):",
        "",
        _table(result["policies"], ratios, entries, lambda p, r: rows[p, r]["false_rate"], best=min),
        "",
        f"{result['cases']['other_questions']} other questions, answered exactly (whole cache: {_cell(full['exact_other'])}):",
        "",
        _table(result["policies"], ratios, entries, lambda p, r: rows[p, r]["exact_other"], best=max),
    ]
    return "\n".join(lines)


def why_table(result: dict[str, Any]) -> str:
    """The arms of the coverage study, and eviction in single layers."""
    ratios = sorted({row["ratio"] for row in result["rows"] if row["policy"] in result["policies"]}, reverse=True)
    rows = {(row["policy"], row["ratio"]): row for row in result["rows"]}
    head = ["", *(f"{ratio:.0%}: false or left out" for ratio in ratios), *(f"{ratio:.0%}: false" for ratio in ratios)]
    arms = [
        [name, *(_cell(rows[name, r]["wrong"]) for r in ratios), *(_cell(rows[name, r]["false_rate"]) for r in ratios)]
        for name in result["policies"]
    ]
    last = min(row["ratio"] for row in result["rows"])
    single = [[name, _cell(rows[name, last]["wrong"]), _cell(rows[name, last]["false_rate"])] for name in result["layers"]]
    return "\n".join(
        [
            *_markdown(head, arms),
            "",
            f"Eviction in one layer only, which keeps {last:.0%}, all others everything:",
            "",
            *_markdown(["", "false or left out", "false"], single),
        ]
    )


def heads_table(result: dict[str, Any]) -> str:
    """Accuracy by the number of silenced heads."""
    rows = {(row["heads"], row["silenced"]): row for row in result["rows"]}
    steps = sorted({row["silenced"] for row in result["rows"]} - {0})
    head = ["heads silenced", "picture: visual", "picture: random", "facts: visual", "facts: random"]
    none = rows["none", 0]
    body = [["0", _cell(none["picture"]), "", _cell(none["facts"]), ""]]
    body += [[str(k), *(_cell(rows[which, k][sort]) for sort in ("picture", "facts") for which in ("visual", "random"))] for k in steps]
    return "\n".join(_markdown(head, body))


def cpu_tables(result: dict[str, Any]) -> str:
    """Times, ratios, budgets and memory."""
    compared = [row for row in result["rows"] if "overhead_on_over_off" in row]
    eager = [row for row in result["rows"] if "ratio_eager_over_on" in row]
    times = [
        [
            row["model"], f"{row['prompt']:,}", str(row["batch"]),
            *(f"{row['step_milliseconds'][arm]:.1f}" for arm in ("statistics on", "statistics off", "generate sdpa")),
            f"{row['overhead_on_over_off']:.3f}", f"{row['overhead_on_over_off_step']:.3f}",
            f"{row['ratio_on_over_generate']:.2f}", f"{row['ratio_on_over_generate_step']:.2f}",
        ]
        for row in compared
    ]  # fmt: skip
    head = ["model", "prompt", "batch", "on, ms a token", "off", "generate", "on/off, end to end", "on/off, a token"]
    head += ["on/generate, end to end", "on/generate, a token"]
    multiples = [
        [f"{row['prompt']:,}", f"{row['ratio_eager_over_on']:.2f}", f"{row['ratio_eager_over_on_step']:.2f}", row["prompt_read_by"]]
        for row in eager
    ]
    budgets = [[f"{row['ratio']:.0%}", f"{row['step_milliseconds']:.1f}", f"{row['kv_bytes'] / _MEGA:.1f}"] for row in result["budgets"]]
    lengths = sorted({row["prompt"] for row in result["memory"]})
    memory = {(row["arm"], row["prompt"]): row["answer_bytes"] / _MEGA for row in result["memory"]}
    arms = list(dict.fromkeys(row["arm"] for row in result["memory"]))
    parts = [
        _markdown(head, times),
        ["Eager attention that gives its maps, over statistics on:"],
        _markdown(["prompt", "end to end", "a token", "its prompt read by"], multiples),
        [f"Budgets on a prompt of {result['budgets'][0]['prompt']:,} tokens, policy {result['cases']['policy']}:"],
        _markdown(["kept", "ms a token", "MB of keys and values"], budgets),
        ["Peak memory of one answer beyond the loaded model, MB:"],
        _markdown(["", *(f"{n:,} tokens" for n in lengths)], [[arm, *(f"{memory[arm, n]:.0f}" for n in lengths)] for arm in arms]),
    ]
    return "\n\n".join("\n".join(part) for part in parts)


def _table(policies: list[str], ratios: list[float], entries: dict[float, float], of: Any, best: Any) -> str:
    bests = {ratio: best(of(policy, ratio)[0] for policy in policies) for ratio in ratios}
    head = ["policy", *(f"{ratio:.0%} ({entries[ratio]:.0f} entries)" for ratio in ratios)]
    body = [[policy, *(_cell(of(policy, r), bold=of(policy, r)[0] == bests[r]) for r in ratios)] for policy in policies]
    return "\n".join(_markdown(head, body))


def _cell(triple: list[float], *, bold: bool = False) -> str:
    value = f"**{triple[0]:.3f}**" if bold else f"{triple[0]:.3f}"
    return f"{value} [{triple[1]:.3f}, {triple[2]:.3f}]"


def _markdown(head: list[str], body: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *body)]
