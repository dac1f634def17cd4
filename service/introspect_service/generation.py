"""One answer from the engine with its final signals: the one path of the service, the stream and `introspect ask`."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Protocol, cast

from introspect.types import FinishReason, PromptInfo, Request, StepTrace
from introspect_probes.scoring import Session
from introspect_probes.signals import AnswerSignal, TokenSignal


class Generates(Protocol):
    """The part of `introspect.async_engine.AsyncEngine` that is used here; `introspect.engine.Engine` has it too."""

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


Progress = Begun | Token | Ended


def generate_answer(engine: Generates, scorer: Scores, request: Request) -> Generator[Progress, None, None]:
    """Run one request.

    A token's signal rests on the row of the next step too, so each token is
    held back by one step and comes out with its final signal.

    Yields:
        `Begun`, each `Token`, and `Ended`. Closing the iterator frees the engine's memory.

    Raises:
        RequestError: the request cannot be served; before anything is yielded.
    """
    started = time.perf_counter()
    session: Session | None = None
    held: Token | None = None
    text, count = "", 0
    with closing(cast("Generator[StepTrace, None, None]", engine.generate([request]))) as steps:
        for step in steps:
            if session is None:
                session = scorer.session(step.prompt, provisional=False)
                yield Begun(step.prompt)
            said = session.step(step)
            if held is not None:
                yield held if said.revised is None else replace(held, signal=said.revised)
                held = None
            text += step.text
            if step.finish_reason is None:
                count += 1
                held = Token(step, said.current or TokenSignal(step.index, None, None, None, is_final=False))
            else:
                seconds = time.perf_counter() - started
                yield Ended(step.prompt, text, step.text, count, step.finish_reason, session.finish(), seconds, step)
