"""An answer and its signals on a terminal; in plain text where there is none.

Colours are of the Okabe-Ito palette, which colour-blind people can tell apart;
the riskiest are underlined too. Without a terminal, risky tokens carry their
risk in brackets.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.style import Style
from rich.text import Text

from introspect_service.responses import TokenLogprob
from introspect_service.signals import AnswerIntrospection

DOUBTFUL, RISKY = 0.25, 0.5
_LOW, _MIDDLE, _HIGH = Style(color="#56b4e9"), Style(color="#e69f00"), Style(color="#d55e00", bold=True, underline=True)


def show(console: Console, tokens: Sequence[TokenLogprob], answer: AnswerIntrospection) -> None:
    """Print the answer, its tokens marked by hallucination risk, and what is known of it."""
    text = Text()
    for token in tokens:
        text.append_text(marked(token, colour=console.is_terminal))
    console.print(text, soft_wrap=True)
    if any(_risk(token) is not None for token in tokens):
        console.print(_legend(colour=console.is_terminal), soft_wrap=True)
    console.print()
    rows = facts(answer)
    width = max(len(name) for name, _ in rows) + 2
    for name, value in rows:
        console.print(Text(name.ljust(width), style="bold").append(value, style="not bold"), soft_wrap=True)


def marked(token: TokenLogprob, *, colour: bool) -> Text:
    """A token by its risk: coloured, or followed by the risk in brackets where that is at least `DOUBTFUL`."""
    text = "" if token.token.startswith("bytes:") else token.token
    risk = _risk(token)
    if risk is None:
        return Text(text)
    if colour:
        return Text(text, style=_HIGH if risk >= RISKY else _MIDDLE if risk >= DOUBTFUL else _LOW)
    if risk < DOUBTFUL:
        return Text(text)
    return Text(f"{text}[{'!' if risk >= RISKY else '?'}{risk:.2f}]")


def facts(answer: AnswerIntrospection) -> list[tuple[str, str]]:
    """Name and value of everything that is known of an answer."""
    rows: list[tuple[str, str]] = []
    if answer.confidence is not None:
        rows.append(("confidence", f"{answer.confidence:.2f}"))
    if answer.guarantee is not None:
        own = answer.guarantee
        reached = "reaches" if own.accepted else "is under"
        rows.append(("guarantee", f"{reached} {own.threshold:g}, over which at most {own.target_risk:.0%} are wrong (delta {own.delta:g})"))
    if answer.hallucination_risk is not None:
        rows.append(("hallucination risk", f"{answer.hallucination_risk:.2f}"))
    if answer.strategy is not None:
        label, possible = answer.strategy.label, ", ".join(answer.strategy.set)
        rows.append(("strategy", f"{label} ({answer.strategy.probabilities[label]:.2f}); possible: {possible}"))
    if not answer.calibrated:
        rows += [(name, f"{value:.3f}") for name, value in (answer.scores or {}).items()]
    if answer.in_domain is not None:
        rows.append(("in domain", f"{answer.in_domain:.2f}"))
    budget = answer.effective_budget
    kept = f"{budget.effective:g} of {budget.prompt_tokens} entries per head kept, {budget.nominal:g} asked for"
    rows.append(("KV cache", f"{budget.policy}: {kept}"))
    rows.append(("probes", f"{answer.probe_set or 'none'}, {'calibrated' if answer.calibrated else 'not calibrated'}"))
    rows += [(name, value) for name, value in (("mismatch", answer.mismatch), ("note", answer.note)) if value]
    return rows


def _risk(token: TokenLogprob) -> float | None:
    return token.introspection.hallucination_risk if token.introspection else None


def _legend(*, colour: bool) -> Text:
    if not colour:
        return Text(f"risk of a claim in brackets from {DOUBTFUL}; [!...] from {RISKY}")
    legend = Text("risk of a claim: ")
    legend.append(f"below {DOUBTFUL}", style=_LOW).append("  ")
    legend.append(f"{DOUBTFUL} to {RISKY}", style=_MIDDLE).append("  ")
    return legend.append(f"from {RISKY}", style=_HIGH)
