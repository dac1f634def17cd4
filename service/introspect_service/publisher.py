"""One answer's events: started, steps in batches, alerts between them, then completed or failed."""

from __future__ import annotations

import asyncio
from typing import Literal

from introspect_service.bus import Delivery, SignalBus
from introspect_service.events import AlertData, CompletedData, EventData, FailedData, FeedbackData, SignalEvent, StartedData, StepData
from introspect_service.events_json import WrittenEvent, completed_json, started_json, step_json
from introspect_service.generation import Begun, Ended, Progress, Token
from introspect_service.runner import Failed

STEP_TOKENS = 16
STEP_SECONDS = 0.1
CONFIRM_SECONDS = 0.25
"""How long an answer's end waits for the stream to confirm its completed event; not at all where the stream is away."""


class AnswerPublisher:
    """Publishes what happens to one answer. Call it on the event loop.

    Args:
        bus: where to.
        source: who publishes, `/introspect/<replica>`.
        completion_id: the answer's id.
        model: the model's name.
        feature_schema: hash of the head statistics' names.
        alert_risk: an alert is published for a hallucination risk over it; none where absent.
        probe_set: whose risks they are.
    """

    def __init__(
        self,
        bus: SignalBus,
        source: str,
        completion_id: str,
        model: str,
        feature_schema: str,
        *,
        alert_risk: float | None = None,
        probe_set: str | None = None,
    ) -> None:
        self._bus, self._source, self._id, self._model, self._schema = bus, source, completion_id, model, feature_schema
        self._alert_risk, self._probe_set = alert_risk, probe_set
        self._length, self._in_risk = 0, False
        self._sequence = 0
        self._tokens: list[Token] = []
        self._timer: asyncio.TimerHandle | None = None
        self._completed: Delivery | None = None

    def hear(self, what: Progress | Failed) -> None:
        """Take the next thing that happened."""
        match what:
            case Begun(prompt):
                self._write(StartedData, started_json(self._model, prompt, self._schema, self._probe_set))
            case Token() if not what.step.is_special:
                self._add(what)
                self._watch(what)
            case Ended():
                self._flush()
                self._watch_whole(what)
                said = what.json.of(self._id, self._schema)
                self._completed = self._write(CompletedData, completed_json(self._model, what, said))
            case Failed(reason, message):
                self._flush()
                self._publish(FailedData(model=self._model, reason=reason, message=message))
            case _:
                pass

    def feedback(self, data: FeedbackData) -> Delivery:
        """Publish what somebody says of the answer."""
        return self._publish(data)

    async def confirmed(self) -> bool:
        """Whether the stream's server has confirmed the completed event."""
        return self._completed is not None and await self._completed.confirmed(CONFIRM_SECONDS if self._bus.connected else 0)

    def _publish(self, data: EventData) -> Delivery:
        event = SignalEvent.make(self._id, self._sequence, self._source, data)
        self._sequence += 1
        return self._bus.publish(event)

    def _write(self, model: type[EventData], data: str) -> Delivery:
        event = WrittenEvent(self._id, self._sequence, self._source, model, data)
        self._sequence += 1
        return self._bus.publish(event)

    def _add(self, token: Token) -> None:
        self._tokens.append(token)
        if len(self._tokens) >= STEP_TOKENS:
            self._flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(STEP_SECONDS, self._flush)

    def _watch(self, token: Token) -> None:
        start, self._length = self._length, self._length + len(token.step.text)
        said = token.signal.hallucination
        is_over = self._is_over(said.risk if said else None)
        # Where claims cannot be told every token has a risk: one alert for each run of tokens, not for each token of it.
        if said is not None and is_over and not (said.kind == "token" and self._in_risk):
            self._flush()  # its token is told of before it
            self._alert("token", said.risk, start, token.step.text, index=token.step.index, kind=said.kind)
        self._in_risk = is_over

    def _watch_whole(self, ended: Ended) -> None:
        risk = ended.signal.hallucination_risk
        if risk is not None and self._is_over(risk):
            self._alert("answer", risk, 0, ended.text)

    def _is_over(self, risk: float | None) -> bool:
        return risk is not None and self._alert_risk is not None and risk > self._alert_risk

    def _alert(
        self,
        level: Literal["token", "answer"],
        risk: float,
        start: int,
        text: str,
        *,
        index: int | None = None,
        kind: Literal["claim", "token"] | None = None,
    ) -> None:
        if self._alert_risk is None:
            return
        self._publish(
            AlertData(
                model=self._model,
                level=level,
                hallucination_risk=round(risk, 6),
                threshold=self._alert_risk,
                start=start,
                end=start + len(text),
                text=text,
                index=index,
                kind=kind,
                probe_set=self._probe_set,
            )
        ).hurry()

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        tokens, self._tokens = self._tokens, []
        if tokens:
            # Written here, not as each comes: behind one another they take a fifth of what each takes by itself.
            self._write(StepData, step_json(self._model, tokens))
