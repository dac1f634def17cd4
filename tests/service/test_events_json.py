"""What is written by hand reads as what is documented, and does not hang on the clock."""

from __future__ import annotations

import json
import math
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from introspect.types import EffectiveBudget, LogitStats, PromptInfo, StepTrace
from introspect_probes.signals import STRATEGIES, HallucinationRisk, Strategy, TokenSignal
from introspect_service.events import CompletedData, SignalEvent, StartedData, StepData, StreamedToken
from introspect_service.events_json import WrittenEvent, completed_json, started_json, step_json, token_json
from introspect_service.generation import Ended, Token
from introspect_service.signals import AnswerIntrospection, BudgetReport, budget_report, rounded, token_introspection

numbers = st.floats(allow_nan=True, allow_infinity=True, width=32)
chances = st.floats(0, 1)
risks = st.builds(HallucinationRisk, risk=chances, internal=chances, prior=chances, kind=st.sampled_from(["claim", "token"]))
strategies = st.builds(
    Strategy,
    label=st.sampled_from(STRATEGIES),
    probabilities=st.dictionaries(st.sampled_from(STRATEGIES), chances),
    set=st.lists(st.sampled_from(STRATEGIES), unique=True).map(tuple),
)
signals = st.builds(
    TokenSignal,
    index=st.integers(0, 10),
    confidence=st.none() | chances,
    hallucination=st.none() | risks,
    strategy=st.none() | strategies,
    is_final=st.booleans(),
)
PROMPT = PromptInfo("r", "q", (5, 6, 7), None, None, (), EffectiveBudget("snapkv", 4, 3.3333333, 9), None, None)


def token(index, text, logprob, entropy, signal, has_logits=True):
    logits = LogitStats(logprob, entropy, 0.5, (1,), (logprob,)) if has_logits else None
    return Token(StepTrace(PROMPT, index, 4, 1, text, False, logits, None), replace(signal, index=index))


@given(st.lists(st.builds(token, st.integers(0, 999), st.text(), numbers, numbers, signals, st.booleans()), max_size=4))
def test_a_step_written_by_hand_is_the_documented_one(tokens):
    event = WrittenEvent("c", 7, "/introspect/test", StepData, step_json('a "model"', tokens))
    documented = StepData(
        model='a "model"',
        tokens=tuple(
            StreamedToken(
                index=t.step.index,
                text=t.step.text,
                logprob=rounded(t.step.logits.logprob) if t.step.logits else None,
                entropy=rounded(t.step.logits.entropy) if t.step.logits else None,
                introspection=token_introspection(t.signal),
            )
            for t in tokens
        ),
    )
    theirs = SignalEvent.make("c", 7, "/introspect/test", documented).to_fields()
    ours = event.to_fields()
    assert list(ours) == list(theirs)
    assert {k: v for k, v in ours.items() if k not in ("time", "data")} == {k: v for k, v in theirs.items() if k not in ("time", "data")}
    assert SignalEvent.from_fields(ours).data == documented
    assert event.droppable


def test_what_json_cannot_carry_is_left_out():
    said = token_json(token(1, "a", -math.inf, math.nan, TokenSignal(1, None, None, None, is_final=True)))
    assert said == '{"index":1,"text":"a","introspection":{"final":true}}'
    lost = Strategy("reading", {"reading": math.nan, "guessing": 0.25}, ("reading",))
    said = token_json(token(1, "a", -1.0, 0.5, TokenSignal(1, None, None, lost, is_final=True)))
    assert json.loads(said)["introspection"]["strategy"] == {"label": "reading", "probabilities": {"guessing": 0.25}, "set": ["reading"]}


def test_what_every_answer_begins_and_ends_with_is_the_documented_too():
    for probe_set in (None, 'a "set"'):
        documented = StartedData(
            model="m", prompt_tokens=3, effective_budget=budget_report(PROMPT.budget), feature_schema="f", probe_set=probe_set
        )
        assert json.loads(started_json("m", PROMPT, "f", probe_set)) == documented.model_dump(mode="json")
    ended = Ended(PROMPT, 'red\u2028 "blåhaj"\x00', "", 7, "stop", None, 1.23456789, None)
    signals = AnswerIntrospection(id="c", calibrated=False, effective_budget=BudgetReport(**vars(PROMPT.budget)), feature_schema="f")
    documented = CompletedData(
        model="m", text=ended.text, finish_reason="stop", prompt_tokens=3, completion_tokens=7, seconds=1.234568, introspection=signals
    )
    written = completed_json("m", ended, signals.model_dump_json())
    assert json.loads(written) == documented.model_dump(mode="json")
    assert written.isascii()
    assert not WrittenEvent("c", 8, "/introspect/test", CompletedData, written).droppable
