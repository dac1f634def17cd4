"""What probes and publishing add to a token, measured where they are called; and how many events a stream takes."""

from __future__ import annotations

import asyncio
import time
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


class _TimedSession:
    def __init__(self, session: Session, seconds: list[float]) -> None:
        self._session, self._seconds = session, seconds

    def step(self, step: StepTrace) -> StepSignals:
        started = time.perf_counter()
        said = self._session.step(step)
        if step.logits is not None:
            self._seconds.append(time.perf_counter() - started)
        return said

    def finish(self) -> AnswerSignal:
        return self._session.finish()


class _TimedScorer:
    def __init__(self, backend: Backend, seconds: list[float]) -> None:
        self._backend, self._seconds = backend, seconds

    def session(self, prompt: PromptInfo, *, provisional: bool = True) -> Session:
        return _TimedSession(self._backend.scorer.session(prompt, provisional=provisional), self._seconds)


async def added_per_token(backend: Backend, url: str, answers: int) -> dict[str, Any]:
    """Seconds that probes and publishing take of each token of `answers` answers; the first is not counted.

    Probes run on the engine's thread and hold up the next token. Publishing runs on the event loop, and is measured with
    the writer of a real stream at work beside it.
    """
    with Image.open(SAMPLES / PICTURE) as opened:
        message = Message("user", (ImagePart(opened.convert("RGB")), TextPart(LONG)))
    bus = RedisBus(url, max_length=10_000, queue_length=4_096)
    await bus.start()
    probes: list[float] = []
    publishing: list[float] = []
    for number in range(answers + 1):
        if number == 1:
            probes.clear()
            publishing.clear()
        name = f"bench-{number}"
        publisher = AnswerPublisher(bus, "/introspect/bench", name, "m", backend.feature_schema, alert_risk=0.5)
        for what in generate_answer(
            backend.engine, _TimedScorer(backend, probes), Request(name, (message,), SamplingParams(max_tokens=64))
        ):
            started = time.perf_counter()
            publisher.hear(what)
            if isinstance(what, Token):
                publishing.append(time.perf_counter() - started)
            await asyncio.sleep(0)
    await bus.close()
    both = [one + other for one, other in zip(probes, publishing, strict=False)]
    return {"probes": spread(probes), "publishing": spread(publishing), "both": spread(both)}


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
