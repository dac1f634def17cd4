"""A CPU row as the README shows it."""

from __future__ import annotations

from typing import Any

from introspect_kernels.bench.cpu import TARGET_ENTRIES, TARGETS

_TIMES = {
    "on": "statistics on",
    "off": "off",
    "sdpa_folded": "SDPA folded",
    "sdpa_gqa": "SDPA `enable_gqa`",
    "eager": "eager",
    "eager_statistics": "eager + statistics",
}
_RATIOS = {
    "overhead_on_over_off": "on / off",
    "overhead_packed_on_over_off": "on / off, packed",
    "overhead_off_over_sdpa": "off / SDPA folded",
}


def blocks(row: dict[str, Any]) -> dict[str, str]:
    """The README's generated blocks, by name."""
    at_target = [case for case in row["cases"] if case["entries"] == TARGET_ENTRIES]
    lengths = [case for case in row["cases"] if case["model"] == "Qwen2.5-VL-7B" and case["dtype"] == "fp32" and case["batch"] == 1]
    found = {
        "kernels-run": run_line(row),
        "kernels-4096": times_table(at_target, ("model", "dtype", "batch")),
        "kernels-lengths": times_table(lengths, ("entries",)),
        "kernels-targets": target_lines(row),
    }
    if "static" in row:
        found["kernels-static"] = static_table(row["static"])
    return found


def run_line(row: dict[str, Any]) -> str:
    """Where, when and on what."""
    facts = row["provenance"]
    machine, versions = facts["machine"], facts["versions"]
    worst = max(case["error_over_budget"] for case in row["cases"])
    return (
        f"{facts['date'][:10]}, commit `{facts.get('commit', 'unknown')[:7]}`, {machine['processor']}, {machine['cores']} cores, "
        f"torch {versions['torch']}. {len(row['cases'])} cases: {row['method']}. Largest error in the gate: {worst:.2f} of its budget."
        + first_call_line(row.get("first_call_seconds", {}))
    )


def first_call_line(seconds: dict[str, dict[str, float]]) -> str:
    """What the first call of each dtype takes; nothing where it was not measured."""
    each = "; ".join(f"{dtype} {took['compiled']:.1f} s, from kept machine code {took['loaded']:.1f} s" for dtype, took in seconds.items())
    return f" The first call in a process: {each}." if each else ""


def times_table(cases: list[dict[str, Any]], keys: tuple[str, ...]) -> str:
    """Milliseconds and ratios, one line a case; a rival that was left out has no figure."""
    ratios = {name: title for name, title in _RATIOS.items() if all(name in case for case in cases)}
    header = [*keys, *_TIMES.values(), *ratios.values()]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(keys) + "--:|" * (len(header) - len(keys))]
    for case in cases:
        cells = [f"{case[key]:,}" if isinstance(case[key], int) else str(case[key]) for key in keys]
        cells += [f"{case['milliseconds'][name]:.2f}" if name in case["milliseconds"] else "" for name in _TIMES]
        cells += [f"{case[name]:.2f}" for name in ratios]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def target_lines(row: dict[str, Any]) -> str:
    """How many cases at 4,096 entries meet each target, and the range of the ratio; nothing of a target that the row does not have."""
    lines = []
    for name, limit in TARGETS.items():
        found = [target for target in row["targets"] if target["ratio"] == name]
        if not found:
            continue
        met, values = sum(target["met"] for target in found), [target["value"] for target in found]
        lines.append(
            f"- {_RATIOS[name]} at most {limit:g} at {TARGET_ENTRIES:,} entries: met in {met} of {len(found)} cases "
            f"({min(values):.2f} to {max(values):.2f})."
        )
    return "\n".join(lines)


def static_table(counts: list[dict[str, Any]]) -> str:
    """The largest counts of each kernel and architecture, over every configuration."""
    lines = ["| kernel | sm | configurations | registers | stack | spills | shared KiB |", "|---|--:|--:|--:|--:|--:|--:|"]
    for kernel, capability in dict.fromkeys((str(c["kernel"]), int(c["capability"])) for c in counts):
        group = [c for c in counts if c["kernel"] == kernel and c["capability"] == capability]
        most = {name: max(c[name] for c in group) for name in ("registers", "stack", "spills", "shared")}
        lines.append(
            f"| `{kernel}` | {capability} | {len(group)} | {most['registers']} | {most['stack']} | {most['spills']} "
            f"| {most['shared'] / 1024:.0f} |"
        )
    return "\n".join(lines)
