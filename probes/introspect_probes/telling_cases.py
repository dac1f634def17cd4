"""Answers worth looking at: where confidence was most right and most wrong, token by token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from introspect_probes.dataset import Table
from introspect_probes.probe_set import ProbeSet
from introspect_probes.traces import FALSE, TRUE, Trace

EACH = 3


@dataclass(frozen=True)
class ShownToken:
    """A token with its probability under the model, the risk of the claim it decides, and whether that claim is false."""

    text: str
    probability: float
    risk: float | None
    is_false: bool | None


@dataclass(frozen=True)
class ShownCase:
    """An answer to show.

    Attributes:
        title: why it is shown.
        trace: the answer.
        confidence: as published.
        tokens: its words.
    """

    title: str
    trace: Trace
    confidence: float
    tokens: tuple[ShownToken, ...]

    def facts(self) -> dict[str, Any]:
        """For the report, without the picture."""
        trace = self.trace
        return {
            "title": self.title, "id": trace.id, "condition": trace.condition, "question": trace.question, "answer": trace.answer,
            "expected": trace.expected, "right": bool(trace.correct), "confidence": round(self.confidence, 4),
        }  # fmt: skip


def telling_cases(probes: ProbeSet, test: Table, confidence: NDArray[np.floating]) -> list[ShownCase]:
    """The surest wrong answers and the least sure right ones, then the best of both; at most one of each question."""
    right = test.correct == 1
    order = np.argsort(-np.asarray(confidence), kind="stable")
    lists = {
        "Worst: sure and wrong": order[~right[order]],
        "Worst: doubted and right": order[::-1][right[order[::-1]]],
        "Best: doubted and wrong": order[::-1][~right[order[::-1]]],
        "Best: sure and right": order[right[order]],
    }
    return [
        ShownCase(title, test.answers[i].trace, float(confidence[i]), _tokens(probes, test.answers[i].trace))
        for title, rows in lists.items()
        for i in _distinct(test, rows)
    ]


def _distinct(test: Table, rows: NDArray[np.int64]) -> list[int]:
    """The first few rows with different pictures and questions."""
    chosen, seen = list[int](), set[str]()
    for row in rows:
        case = test.answers[row].trace.case_id
        if case not in seen:
            seen.add(case)
            chosen.append(int(row))
        if len(chosen) == EACH:
            break
    return chosen


def _tokens(probes: ProbeSet, trace: Trace) -> tuple[ShownToken, ...]:
    session = probes.session(trace.prompt)
    risks: dict[int, float] = {}
    for step in trace.steps:
        heard = session.step(step).revised
        if heard is not None and heard.hallucination is not None:
            risks[heard.index] = heard.hallucination.risk
    labels = {c.token: c.label == FALSE for c in trace.claims if c.label in (TRUE, FALSE)}
    return tuple(
        ShownToken(s.text, float(np.exp(s.logits.logprob)), risks.get(s.index), labels.get(s.index))
        for s in trace.steps
        if s.logits is not None and not s.is_special
    )
