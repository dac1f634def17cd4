"""An answer's signals written by hand are those of the documented models, whatever is asked for and however often."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from introspect.types import EffectiveBudget, PromptInfo
from introspect_probes.signals import STRATEGIES, AnswerSignal, Guaranteed, SpanSignal, Strategy
from introspect_service.answers import AnswerWriter
from introspect_service.generation import Ended
from introspect_service.responses import ChatCompletion, ChatCompletionChunk, ChoiceIntrospection, CompletionIntrospection
from introspect_service.schemas import ChatRequest, IntrospectionOptions
from introspect_service.signals import AnswerIntrospection, answer_introspection
from introspect_service.signals_json import AnswerJson

texts = st.text(max_size=8)
numbers = st.floats(allow_nan=True, allow_infinity=True)
chances = st.floats(0, 1)
strategies = st.builds(
    Strategy,
    label=st.sampled_from(STRATEGIES),
    probabilities=st.dictionaries(st.sampled_from(STRATEGIES), chances),
    set=st.lists(st.sampled_from(STRATEGIES), unique=True).map(tuple),
)
spans = st.builds(
    SpanSignal, start=st.integers(0, 99), end=st.integers(0, 99), text=texts, hallucination_risk=chances, strategy=st.none() | strategies
)
answers = st.builds(
    AnswerSignal,
    confidence=st.none() | chances | numbers,
    hallucination_risk=st.none() | chances,
    strategy=st.none() | strategies,
    spans=st.none() | st.lists(spans, max_size=3).map(tuple),
    calibrated=st.booleans(),
    probe_set=st.none() | texts,
    in_domain=st.none() | chances,
    note=st.none() | texts,
    scores=st.dictionaries(st.sampled_from(["mean_logprob", "perplexity", "rauq"]), numbers),
    mismatch=st.none() | texts,
    guarantee=st.none() | st.builds(Guaranteed, accepted=st.booleans(), threshold=chances, target_risk=chances, delta=chances),
)
options = st.builds(
    IntrospectionOptions,
    signals=st.none() | st.lists(st.sampled_from(["confidence", "hallucination_risk", "strategy", "scores"]), unique=True),
)
BUDGET = EffectiveBudget("snapkv", 64, 21.333333333, 96)
STRATEGY = Strategy("reading", {"reading": 0.75, "guessing": 0.25}, ("reading",))
SIGNAL = AnswerSignal(
    confidence=0.9, hallucination_risk=0.2, strategy=STRATEGY, spans=(SpanSignal(0, 3, "a 7", 0.125, STRATEGY),), calibrated=True,
    probe_set="p", in_domain=0.8, note=None, scores={"rauq": 1.5},
)  # fmt: skip


@given(answers, st.lists(st.tuples(options, st.none() | st.booleans()), min_size=1, max_size=3), texts)
def test_an_answer_written_by_hand_is_the_documented_one(signal, asked, name):
    writer = AnswerJson(signal, BUDGET)
    for wanted, published in asked:  # one behind another: what is kept of one must not be told in the next
        written = writer.of(name, "abcd", options=wanted, published=published)
        documented = answer_introspection(name, signal, BUDGET, "abcd", options=wanted, published=published)
        assert AnswerIntrospection.model_validate_json(written) == documented
        assert json.loads(written) == documented.model_dump(mode="json")
        assert written.isascii()


def test_what_json_cannot_carry_is_left_out():
    lost = replace(SIGNAL, spans=(SpanSignal(0, 1, "\ud800\x00\u2028", math.nan, None),), in_domain=math.nan, scores={"rauq": math.inf})
    said = json.loads(AnswerJson(lost, BUDGET).of("c", "abcd"))
    assert said["spans"] == [{"start": 0, "end": 1, "text": "\ud800\x00\u2028"}]
    assert said["scores"] == {}
    assert "in_domain" not in said


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("wanted", [None, IntrospectionOptions(), IntrospectionOptions(signals=["confidence"])])
def test_a_response_has_the_signals_of_every_choice(count, wanted):
    chat = ChatRequest(model="m", messages=[{"role": "user", "content": "?"}], n=count, introspection=wanted)
    backend = SimpleNamespace(model=SimpleNamespace(name="m", fingerprint="f" * 20, tokenizer=None), feature_schema="abcd")
    writer = AnswerWriter("c", chat, backend)
    prompt = PromptInfo("c", "q", (5, 6, 7), None, None, (), BUDGET, None, None)
    each = [replace(SIGNAL, confidence=index / 4) for index in range(count)]
    published = [index != 1 for index in range(count)]
    for index in reversed(range(count)):  # in any order
        writer.end(index, Ended(prompt, "å", "", 2, "stop", each[index], 0.5, None))
    whole = json.loads(writer.whole([[]] * count, published))
    chunk = json.loads(writer.closing(0, writer._ended[0], published)[-1])
    if wanted is None:
        assert "introspection" not in whole | chunk
    else:
        said = [
            answer_introspection("c" if not index else f"c-{index}", signal, BUDGET, "abcd", options=wanted, published=published[index])
            for index, signal in enumerate(each)
        ]
        choices = tuple(ChoiceIntrospection(index=index, **dict(one)) for index, one in enumerate(said)) if count > 1 else None
        documented = CompletionIntrospection(**dict(said[0]), choices=choices).model_dump(mode="json")
        assert whole["introspection"] == chunk["introspection"] == documented
    assert ChatCompletion.model_validate(whole).model_dump(mode="json") == whole
    assert ChatCompletionChunk.model_validate(chunk).model_dump(mode="json") == chunk
