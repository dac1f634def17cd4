"""Answers of a scheduler, and whether two are the same."""

from __future__ import annotations

import numpy as np
import pytest

from introspect.answer import Answer
from introspect.scheduler import Scheduler
from introspect.types import StepTrace


def finish(scheduler: Scheduler) -> dict[Answer, list[StepTrace | Exception]]:
    """Everything that comes until nothing is left to do."""
    found: dict[Answer, list[StepTrace | Exception]] = {}
    while scheduler.has_work:
        for answer, event in scheduler.step():
            found.setdefault(answer, []).append(event)
    return found


def assert_same_answer(ours: list[StepTrace], alone: list[StepTrace]) -> None:
    """Logits within 1e-4, and tokens wherever the margin exceeds that (here it always does)."""
    assert len(ours) == len(alone)
    for step, expected in zip(ours, alone, strict=True):
        if expected.logits is not None and step.logits is not None:
            assert expected.logits.margin > 1e-4
            assert step.logits.logprob == pytest.approx(expected.logits.logprob, abs=1e-4)
        assert (step.token_id, step.position, step.text, step.finish_reason) == (
            expected.token_id,
            expected.position,
            expected.text,
            expected.finish_reason,
        )
        assert (step.heads is None) == (expected.heads is None)
        if step.heads is not None and expected.heads is not None:
            np.testing.assert_array_equal(step.heads.retained, expected.heads.retained)
            np.testing.assert_allclose(step.heads.lse, expected.heads.lse, atol=1e-4)
