"""The one way in which signals are made, online and offline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from introspect.types import PromptInfo, StepTrace
from introspect_probes.signals import AnswerSignal, TokenSignal


@dataclass(frozen=True)
class StepSignals:
    """What one step says: a first word on its token, and the last word on the token before.

    A token's signal also rests on its reading row, which comes with the next
    step; so each token is heard of twice, and `is_final` tells which it is.
    """

    current: TokenSignal | None
    revised: TokenSignal | None


class Session(Protocol):
    """Scores one answer while it is generated."""

    def step(self, step: StepTrace) -> StepSignals:
        """Take one step of the engine, the closing step included."""
        ...

    def finish(self) -> AnswerSignal:
        """The answer's signals; call after the closing step."""
        ...


class Scorer(Protocol):
    """A probe set, or the training-free fallback where none fits."""

    @property
    def name(self) -> str | None:
        """The probe set's name; `None` for the fallback."""
        ...

    def session(self, prompt: PromptInfo, *, provisional: bool = True) -> Session:
        """Begin to score the answer to `prompt`; without `provisional` only final signals are worked out."""
        ...
