"""Alerts: when a risk is over the threshold, which of them, in which order, and with which numbers."""

from __future__ import annotations

from dataclasses import replace

import httpx
import numpy as np
import pytest

from introspect.types import EffectiveBudget, LogitStats, PromptInfo, StepTrace
from introspect_probes.scoring import StepSignals
from introspect_probes.signals import AnswerSignal, HallucinationRisk, TokenSignal
from introspect_service.bus import Delivery, OffBus
from introspect_service.events import AlertData, CompletedData, SignalEvent, StepData
from introspect_service.generation import Begun, Ended, Token
from introspect_service.publisher import AnswerPublisher
from introspect_service.reader import read

PROMPT = PromptInfo(
    request_id="r", question="what digit ?", token_ids=np.arange(5), segments=np.zeros(5, np.uint8), image_embedding=None, image_grids=(),
    budget=EffectiveBudget("full", 5, 5, 5), logical=np.zeros(6, np.int32), retention=np.zeros((1, 1, 6), np.float32),
)  # fmt: skip
WORDS = ("it", " is", " a", " red", " 7")

pytestmark = pytest.mark.anyio


class Kept(OffBus):
    """Keeps what was published."""

    def __init__(self):
        super().__init__()
        self.events, self.hurried = [], []

    def publish(self, event):
        kept = SignalEvent.from_fields(event.to_fields())  # as a consumer reads it
        self.events.append(kept)
        return Delivery(lambda: self.hurried.append(kept.type))


def told(risks, whole, *, kind="claim", threshold=0.5):
    """Events of an answer whose tokens have these risks."""
    bus = Kept()
    publisher = AnswerPublisher(bus, "/introspect/t", "c", "m", "schema", alert_risk=threshold, probe_set="probes-1")
    publisher.hear(Begun(PROMPT))
    for index, (word, risk) in enumerate(zip(WORDS, risks, strict=False)):
        said = None if risk is None else HallucinationRisk(risk, risk, 0.1, kind)
        step = StepTrace(PROMPT, index, 4 + index, 1, word, False, LogitStats(-0.5, 1.0, 0.5, (1,), (-0.5,)), None)
        publisher.hear(Token(step, TokenSignal(index, 0.5, said, None, is_final=True)))
    closing = StepTrace(PROMPT, len(risks), 9, -1, "", False, None, None, "stop")
    signal = AnswerSignal(0.5, whole, None, (), True, "probes-1", 0.9, None, {})
    publisher.hear(Ended(PROMPT, "".join(WORDS[: len(risks)]), "", len(risks), "stop", signal, 1.0, closing))
    assert bus.hurried == [event.type for event in bus.events if isinstance(event.data, AlertData)], "they and nothing else"
    return [event.data for event in bus.events]


async def test_every_claim_over_the_threshold_makes_an_alert_behind_the_step_that_has_its_token():
    events = told((None, None, None, 0.75, 0.875), 0.96875)
    assert [type(data).__name__ for data in events] == [
        "StartedData", "StepData", "AlertData", "StepData", "AlertData", "AlertData", "CompletedData",
    ]  # fmt: skip
    red, seven, whole = (data for data in events if isinstance(data, AlertData))
    assert red == AlertData(
        model="m", level="token", hallucination_risk=0.75, threshold=0.5, start=7, end=11, text=" red", index=3, kind="claim",
        probe_set="probes-1",
    )  # fmt: skip
    assert (seven.start, seven.end, seven.text, seven.index, seven.hallucination_risk) == (11, 13, " 7", 4, 0.875)
    assert (whole.level, whole.start, whole.end, whole.text, whole.hallucination_risk) == ("answer", 0, 13, "it is a red 7", 0.96875)
    assert (whole.index, whole.kind) == (None, None)
    assert [token.text for token in events[1].tokens] == ["it", " is", " a", " red"]


@pytest.mark.parametrize(("threshold", "alerts"), [(0.5, 1), (0.75, 0), (1.0, 0), (None, 0)])
async def test_over_means_over(threshold, alerts):
    assert sum(isinstance(data, AlertData) for data in told((0.75,), None, threshold=threshold)) == alerts


async def test_where_claims_cannot_be_told_a_run_of_risky_tokens_makes_one_alert():
    events = told((0.9, 0.8, 0.1, 0.7, 0.6), None, kind="token")
    assert [data.index for data in events if isinstance(data, AlertData)] == [0, 3]


def test_an_alert_is_never_dropped_where_steps_are():
    assert StepData.DROPPABLE
    assert not AlertData.DROPPABLE
    assert not CompletedData.DROPPABLE


class Doubting:
    """A scorer to whom the second token is false at 0.9, and with it the answer."""

    name = "doubting-1"

    def session(self, _prompt, *, provisional):  # noqa: ARG002
        return self

    def step(self, step):
        def says(index):
            risk = HallucinationRisk(0.9, 0.9, 0.1, "claim") if index == 1 else None
            return TokenSignal(index, 0.5, risk, None, is_final=True)

        return StepSignals(None if step.logits is None else says(step.index), says(step.index - 1) if step.index else None)

    def finish(self):
        return AnswerSignal(0.1, 0.9, None, (), True, self.name, 0.9, None, {})


def test_alerts_of_an_answer_reach_the_stream_with_the_operator_s_threshold(settings, backend, make, valkey_server):
    own = settings.model_copy(update={"port": make.free_port(), "alert_risk": 0.625, "replica": "alerting"})
    body = {"model": own.model, "messages": make.messages(), "max_tokens": 4, "logprobs": True}
    with make.running(own, replace(backend, scorer=Doubting())) as (url, _):
        answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).json()
    events = [e for e in read(valkey_server.connection_url, start="0", idle_seconds=0.2) if e.subject == answer["id"]]
    token, whole = (event.data for event in events if event.type == "introspect.alert.v1")
    text, words = answer["choices"][0]["message"]["content"], [t["token"] for t in answer["choices"][0]["logprobs"]["content"]]
    assert (token.text, token.threshold, token.hallucination_risk, token.probe_set) == (words[1], 0.625, 0.9, "doubting-1")
    assert text[token.start : token.end] == words[1]
    assert (whole.level, whole.text) == ("answer", text)
    assert [event.sequence for event in events] == list(range(len(events)))
    assert [event.type.split(".")[1] for event in events[-2:]] == ["alert", "completed"]
