"""The card of a probe set: what it was fitted on, what it may score, what it cannot say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from introspect_probes.report import caches_named

if TYPE_CHECKING:
    from introspect_probes.probe_set import ProbeSet

_SIGNALS = {"hallucination_risk": "Hallucination risk", "strategy": "Strategy state", "in_domain": "Whether a prompt is familiar"}


def card(probes: ProbeSet) -> str:
    """The card as Markdown, from the manifest alone."""
    manifest = probes.manifest
    model, budgets, counts = manifest["model"], manifest["budgets"], manifest["counts"]
    absent = manifest.get("absent", {})
    lines = [
        f"# Probe set {probes.name}",
        (
            f"Scores answers of `{model['name']}` ({model['fingerprint'][:12]}) under the policies {', '.join(budgets['policies'])}, "
            f"with at least {budgets['min_ratio']:.0%} of the prompt kept. Anything else is refused."
        ),
        "## Signals",
        "- Confidence: P(the answer is right), calibrated.",
        *(f"- {title}: {f'absent, {absent[name]}' if name in absent else 'fitted'}." for name, title in _SIGNALS.items()),
        "## Fitted on",
        f"An answer counted as right by the matcher `{manifest.get('matcher', 'normalised')}`.",
        "| part | answers | wrong | claims | false |",
        "|---|---|---|---|---|",
        *(
            f"| {part} | {own['answers']:,} | {own['wrong_answers']:,} | {own['claims']:,} | {own['false_claims']:,} |"
            for part, own in counts.items()
        ),
    ]
    if sparse := manifest.get("sparse"):
        full = next(iter(sparse.values()))
        lines += [
            "## Fewer heads",
            (
                f"AUROC of {'hallucination risk' if probes.claims is not None else 'confidence'} on {full['measured_on']}: "
                f"{_cell(full['auroc_all_heads'])} with all heads, {_cell(full['auroc_no_heads'])} with none (logits, place, kind, budget)."
            ),
            "| heads | AUROC | cost |",
            "|---|---|---|",
            *(f"| {count} | {_cell(own['auroc'])} | {_cell(own['cost'])} |" for count, own in sparse.items()),
        ]
    if probes.guarantee is not None:
        own, which = probes.guarantee, caches_named(probes.guarantee.caches)
        lines += [
            "## Guarantee",
            (
                f"With probability {1 - own.delta:.0%} over its choice, at most {own.target_risk:.1%} of answers{which} with a confidence "
                f"of at least {own.threshold:g} are wrong. Learn-then-Test on one random answer of each of {own.groups:,} groups "
                f"({own.accepted:,} accepted, {own.wrong:,} wrong), conditions {', '.join(manifest['guarantee']['conditions'])} in the mix "
                "that was recorded. Void where pictures, questions, budgets or the model are others."
            ),
        ]
    return "\n\n".join("\n".join(block) for block in _blocks(lines)) + "\n"


def _cell(value: list[float | None]) -> str:
    """Value and interval; a dash where it could not be had."""
    return "-" if None in value else f"{value[0]:.3f} [{value[1]:.3f}, {value[2]:.3f}]"


def _blocks(lines: list[str]) -> list[list[str]]:
    """Lines of one list or table stay together."""
    blocks: list[list[str]] = []
    for line in lines:
        if blocks and line[0] in "|-" and blocks[-1][-1][0] == line[0]:
            blocks[-1].append(line)
        else:
            blocks.append([line])
    return blocks
