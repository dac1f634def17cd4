"""Answers worth looking at: where confidence was most right and most wrong, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from introspect_probes.dataset import Table
from introspect_probes.labels import read_labelled
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


def telling_cases(probes: ProbeSet, test: Table, confidence: NDArray[np.floating], folders: Sequence[Path]) -> list[ShownCase]:
    """The surest wrong answers and the least sure right ones, then the best of both; at most one of each question.

    Only these are read from `folders` with their steps and pictures; the table need not hold them.
    """
    right = test.correct == 1
    order = np.argsort(-np.asarray(confidence), kind="stable")
    lists = {
        "Worst: sure and wrong": order[~right[order]],
        "Worst: doubted and right": order[::-1][right[order[::-1]]],
        "Best: doubted and wrong": order[::-1][~right[order[::-1]]],
        "Best: sure and right": order[right[order]],
    }
    chosen = [(title, test.answers[i].trace.id, float(confidence[i])) for title, rows in lists.items() for i in _distinct(test, rows)]
    wanted = {name for _, name, _ in chosen}
    whole = {t.id: t for folder in folders for t in read_labelled(folder, wanted=lambda entry: entry.id in wanted)}
    return [ShownCase(title, whole[name], sure, _tokens(probes, whole[name])) for title, name, sure in chosen]


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
