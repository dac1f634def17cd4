"""An answer on a terminal is coloured by risk; without one, risky tokens carry it in brackets."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from introspect_service.console import facts, marked, show
from introspect_service.responses import TokenLogprob
from introspect_service.signals import AnswerIntrospection, BudgetReport, StrategyState, TokenIntrospection

BUDGET = BudgetReport(policy="snapkv", nominal=40, effective=39.5, prompt_tokens=160)


def token(text, risk=None):
    signals = TokenIntrospection(final=True, hallucination_risk=risk)
    return TokenLogprob(token=text, logprob=-1, bytes=None, top_logprobs=[], introspection=signals)


def printed(*, terminal, answer):
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, color_system="truecolor" if terminal else None, width=100, highlight=False)
    show(console, [token("row"), token(" 2", 0.1), token(" red", 0.3), token(" 7", 0.62)], answer)
    return out.getvalue()


ANSWER = AnswerIntrospection(
    id="i",
    confidence=0.9,
    hallucination_risk=0.62,
    strategy=StrategyState(label="guessing", probabilities={"guessing": 0.8}, set=("guessing",)),
    calibrated=True,
    probe_set="embedded-4",
    spans=(),
    effective_budget=BUDGET,
    scores={"mean_logprob": -0.25},
    in_domain=0.97,
    note="look again",
    feature_schema="abcd",
)
UNKNOWN = AnswerIntrospection(id="i", calibrated=False, effective_budget=BUDGET, scores={"mean_logprob": -0.25}, feature_schema="abcd")


def test_without_a_terminal_risky_tokens_are_marked_in_text():
    text = printed(terminal=False, answer=ANSWER)
    assert text.splitlines()[0] == "row 2 red[?0.30] 7[!0.62]"
    assert "\x1b" not in text


def test_on_a_terminal_the_three_levels_differ_in_more_than_colour():
    styles = [marked(token("x", risk), colour=True).style for risk in (0.1, 0.3, 0.62)]
    assert len({style.color for style in styles}) == 3
    assert [bool(style.underline) for style in styles] == [False, False, True]
    first = printed(terminal=True, answer=ANSWER).splitlines()[0]
    assert first.startswith("row\x1b[")
    assert "[!" not in first


@pytest.mark.parametrize(("risk", "shown"), [(0.249, "x"), (0.25, "x[?0.25]"), (0.5, "x[!0.50]"), (None, "x")])
def test_the_levels_begin_where_the_legend_says(risk, shown):
    assert marked(token("x", risk), colour=False).plain == shown


def test_what_is_known_is_said():
    said = dict(facts(ANSWER))
    assert said["confidence"] == "0.90"
    assert said["hallucination risk"] == "0.62"
    assert said["strategy"] == "guessing (0.80); possible: guessing"
    assert said["in domain"] == "0.97"
    assert said["KV cache"] == "snapkv: 39.5 of 160 entries per head kept, 40 asked for"
    assert said["probes"] == "embedded-4, calibrated"
    assert said["note"] == "look again"
    assert "mean_logprob" not in said


def test_what_is_not_known_is_left_out():
    assert [name for name, _ in facts(UNKNOWN)] == ["mean_logprob", "KV cache", "probes"]
    assert dict(facts(UNKNOWN))["probes"] == "none, not calibrated"
