"""Answers whose prompts are being read, a piece at a time."""

from __future__ import annotations

from introspect.answer import Answer
from introspect.limits import Need
from introspect.loading import LoadedModel
from introspect.pool import SlotPool
from introspect.prefill import Prefill
from introspect.stepwise import Stepwise


class Reading:
    """A group of answers whose prompts are being read."""

    def __init__(self, loaded: LoadedModel, answers: list[Answer], needs: list[Need], pool: SlotPool, chunk: int) -> None:
        self.answers = answers
        self.work = Prefill(
            loaded,
            [answer.prompt for answer in answers],
            pool,
            slack=[need.slack for need in needs],
            tracked=[need.is_tracked for need in needs],
            chunk=chunk,
        )
        self._steps = Stepwise(self.work.run)

    def advance(self, allowance: int | None) -> bool:
        """Read on; whether the prompts are read."""
        return self._steps.advance(allowance)

    def cancel(self) -> None:
        """Stop reading and give everything back."""
        self._steps.cancel()
        self.work.free()
