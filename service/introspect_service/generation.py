"""One answer from the engine with its final signals: the one path of the service, the stream and `introspect ask`."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, cast

from introspect.types import FinishReason, PromptInfo, Request, StepTrace
from introspect_probes.scoring import Session
from introspect_probes.signals import AnswerSignal, TokenSignal
from introspect_service.signals_json import AnswerJson


class Generates(Protocol):
    """The part of `introspect.callers.ManyCallers` that is used here; `introspect.engine.Engine` has it too."""

    def generate(self, requests: list[Request]) -> Iterator[StepTrace]:
        """Steps of all requests."""
        ...


class Scores(Protocol):
    """The part of `introspect_probes.scoring.Scorer` that is used here."""

    def session(self, prompt: PromptInfo, *, provisional: bool = True) -> Session:
        """Begin to score the answer to `prompt`."""
        ...


@dataclass(frozen=True)
class Begun:
    """The prompt is read."""

    prompt: PromptInfo


@dataclass(frozen=True)
class Token:
    """A token and its signal, which no later step revises."""

    step: StepTrace
    signal: TokenSignal


@dataclass(frozen=True)
class Ended:
    """The answer is complete.

    Attributes:
        prompt: what was answered.
        text: the whole answer.
        rest: the end of the text that no token carried.
        tokens: how many were generated, the end token included.
        finish_reason: why it ended.
        signal: the signals of the whole.
        seconds: from the start of the prefill.
        closing: the step after the last token, with the row that read it where there is one.
    """

    prompt: PromptInfo
    text: str
    rest: str
    tokens: int
    finish_reason: FinishReason
    signal: AnswerSignal
    seconds: float
    closing: StepTrace

    @cached_property
    def json(self) -> AnswerJson:
        """Writes its signals."""
        return AnswerJson(self.signal, self.prompt.budget)


Progress = Begun | Token | Ended


class Unfolding:
    """One answer, step by step: what each step lets be said for good.

    A token's signal rests on the row of the next step too, so each token is
    held back by one step and comes out with its final signal.

    Args:
        scorer: whose signals they are.
    """

    def __init__(self, scorer: Scores) -> None:
        self._scorer, self._started = scorer, time.perf_counter()
        self._session: Session | None = None
        self._held: tuple[StepTrace, TokenSignal | None] | None = None
        self._text, self._count = "", 0

    def take(self, step: StepTrace) -> list[Progress]:
        """`Begun` with the first step, then a `Token` one step after it was chosen, and `Ended` with the closing step."""
        said: list[Progress] = []
        if self._session is None:
            self._session = self._scorer.session(step.prompt, provisional=False)
            said.append(Begun(step.prompt))
        signals = self._session.step(step)
        held, self._held = self._held, None
        if held is not None:
            last, current = held
            known = signals.revised or current or TokenSignal(last.index, None, None, None, is_final=False)
            said.append(Token(last, known))
        self._text += step.text
        if step.finish_reason is None:
            self._count += 1
            self._held = (step, signals.current)
        else:
            seconds = time.perf_counter() - self._started
            signal = self._session.finish()
            said.append(Ended(step.prompt, self._text, step.text, self._count, step.finish_reason, signal, seconds, step))
        return said


def generate_answer(engine: Generates, scorer: Scores, request: Request) -> Generator[Progress, None, None]:
    """Run one request.

    Yields:
        `Begun`, each `Token`, and `Ended`; see `Unfolding`. Closing the iterator frees the engine's memory.

    Raises:
        RequestError: the request cannot be served; before anything is yielded.
    """
    answer = Unfolding(scorer)
    with closing(cast("Generator[StepTrace, None, None]", engine.generate([request]))) as steps:
        for step in steps:
            yield from answer.take(step)
