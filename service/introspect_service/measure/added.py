"""What probes and publishing add to a token, measured where they are called; and how many events a stream takes."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from introspect.types import ImagePart, Message, PromptInfo, Request, SamplingParams, StepTrace, TextPart
from introspect_probes.scoring import Session, StepSignals
from introspect_probes.signals import AnswerSignal
from introspect_service.backend import Backend
from introspect_service.bus import RedisBus
from introspect_service.events import SignalEvent, StepData, StreamedToken
from introspect_service.generation import Token, generate_answer
from introspect_service.measure.client import LONG, PICTURE
from introspect_service.measure.figures import spread
from introspect_service.page import SAMPLES
from introspect_service.publisher import AnswerPublisher
from introspect_service.signals import TokenIntrospection

_WAITING = 2_000


@dataclass
class _Times:
    """Seconds that probes took: of each answer to begin and to end, of each token."""

    begin: list[float] = field(default_factory=list)
    token: list[float] = field(default_factory=list)
    finish: list[float] = field(default_factory=list)


class _TimedSession:
    def __init__(self, session: Session, times: _Times) -> None:
        self._session, self._times = session, times

    def step(self, step: StepTrace) -> StepSignals:
        started = time.perf_counter()
        said = self._session.step(step)
        if step.logits is not None:
            self._times.token.append(time.perf_counter() - started)
        return said

    def finish(self) -> AnswerSignal:
        started = time.perf_counter()
        said = self._session.finish()
        self._times.finish.append(time.perf_counter() - started)
        return said


class _TimedScorer:
    def __init__(self, backend: Backend, times: _Times) -> None:
        self._backend, self._times = backend, times

    def session(self, prompt: PromptInfo, *, provisional: bool = True) -> Session:
        started = time.perf_counter()
        session = self._backend.scorer.session(prompt, provisional=provisional)
        self._times.begin.append(time.perf_counter() - started)
        return _TimedSession(session, self._times)


async def added_per_token(backend: Backend, url: str, answers: int) -> dict[str, Any]:
    """What probes and publishing take of each token of `answers` answers, and of each answer; the first answer is not counted.

    Probes run on the answer's thread. Publishing runs on the event loop, and is measured with the writer of a real stream
    at work beside it. `all_ms_a_token` is everything, what is done once an answer included, over the number of tokens.
    """
    with Image.open(SAMPLES / PICTURE) as opened:
        message = Message("user", (ImagePart(opened.convert("RGB")), TextPart(LONG)))
    bus = RedisBus(url, max_length=10_000, queue_length=4_096)
    await bus.start()
    times, publishing, around = _Times(), list[float](), list[float]()
    for number in range(answers + 1):
        if number == 1:
            times, publishing, around = _Times(), [], []
        name = f"bench-{number}"
        publisher = AnswerPublisher(bus, "/introspect/bench", name, "m", backend.feature_schema, alert_risk=0.5)
        request = Request(name, (message,), SamplingParams(max_tokens=64))
        for what in generate_answer(backend.engine, _TimedScorer(backend, times), request):
            started = time.perf_counter()
            publisher.hear(what)
            (publishing if isinstance(what, Token) else around).append(time.perf_counter() - started)
            await asyncio.sleep(0)
    await bus.close()
    both = [one + other for one, other in zip(times.token, publishing, strict=True)]
    everything = sum(both) + sum(around) + sum(times.begin) + sum(times.finish)
    return {
        "probes": spread(times.token),
        "publishing": spread(publishing),
        "both": spread(both),
        "probes_begin_an_answer": spread(times.begin),
        "probes_end_an_answer": spread(times.finish),
        "all_ms_a_token": round(1000 * everything / len(both), 4),
    }


async def events_per_second(url: str, events: int) -> dict[str, float]:
    """How many events of sixteen tokens one bus writes to a stream in a second, none dropped."""
    token = StreamedToken(
        index=1, text=" red", logprob=-0.012345, entropy=0.123456, introspection=TokenIntrospection(confidence=0.912345, final=True)
    )
    data = StepData(model="m", tokens=(token,) * 16)
    bus = RedisBus(url, max_length=10_000, queue_length=2 * _WAITING)
    await bus.start()
    started = time.perf_counter()
    for number in range(events):
        delivery = bus.publish(SignalEvent.make("bench", number, "/introspect/bench", data))
        if number % _WAITING == _WAITING - 1 or number == events - 1:
            await delivery.confirmed(60)
    seconds = time.perf_counter() - started
    written = bus.counters.published
    await bus.close()
    return {
        "events": written,
        "tokens_an_event": 16,
        "dropped": sum(bus.counters.dropped.values()),
        "per_second": round(written / seconds, 1),
    }
