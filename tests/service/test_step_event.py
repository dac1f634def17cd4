"""What is written by hand reads as what is documented, and does not hang on the clock."""

from __future__ import annotations

import json
import math
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from introspect.types import EffectiveBudget, LogitStats, PromptInfo, StepTrace
from introspect_probes.signals import STRATEGIES, HallucinationRisk, Strategy, TokenSignal
from introspect_service.events import SignalEvent, StepData, StreamedToken
from introspect_service.generation import Token
from introspect_service.signals import rounded, token_introspection
from introspect_service.step_event import StepEvent, token_json

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
PROMPT = PromptInfo("r", "q", None, None, None, (), EffectiveBudget("full", 4, 4, 4), None, None)


def token(index, text, logprob, entropy, signal, has_logits=True):
    logits = LogitStats(logprob, entropy, 0.5, (1,), (logprob,)) if has_logits else None
    return Token(StepTrace(PROMPT, index, 4, 1, text, False, logits, None), replace(signal, index=index))


@given(st.lists(st.builds(token, st.integers(0, 999), st.text(), numbers, numbers, signals, st.booleans()), max_size=4))
def test_a_step_written_by_hand_is_the_documented_one(tokens):
    event = StepEvent("c", 7, "/introspect/test", 'a "model"', tuple(token_json(t) for t in tokens))
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
