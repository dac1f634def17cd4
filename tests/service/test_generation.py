"""Tokens are held back until their signals are final, and what a scorer says comes out number by number."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from introspect.types import EffectiveBudget, LogitStats, PromptInfo, Request, StepTrace
from introspect_probes.scoring import StepSignals
from introspect_probes.signals import AnswerSignal, HallucinationRisk, SpanSignal, Strategy, TokenSignal
from introspect_service.generation import Begun, Token, generate_answer
from introspect_service.schemas import IntrospectionOptions
from introspect_service.signals import answer_introspection, token_introspection

PROMPT = PromptInfo(
    request_id="r", question="what digit ?", token_ids=np.arange(5), segments=np.zeros(5, np.uint8), image_embedding=None, image_grids=(),
    budget=EffectiveBudget("full", 5, 5, 5), logical=np.zeros(6, np.int32), retention=np.zeros((1, 1, 6), np.float32),
)  # fmt: skip
STRATEGY = Strategy("perceiving", {"perceiving": 0.7, "guessing": 0.3}, ("perceiving",))
ANSWER = AnswerSignal(
    confidence=0.75, hallucination_risk=0.25, strategy=STRATEGY, spans=(SpanSignal(0, 1, "7", 0.125, STRATEGY),), calibrated=True,
    probe_set="test-1", in_domain=0.9, note=None, scores={"mean_logprob": -0.5, "broken": math.nan},
)  # fmt: skip


def step(index, text, *, token=1, finish=None, special=False):
    logits = None if finish else LogitStats(-0.5, 1.0, 0.5, (1, 2), (-0.5, -1.0))
    return StepTrace(PROMPT, index, 4 + index, -1 if finish else token, text, special, logits, None, finish)


class Steps:
    """An engine that yields what it was given, and knows whether it was closed."""

    def __init__(self, *steps):
        self.steps, self.closed = steps, False

    def generate(self, _requests):
        try:
            yield from self.steps
        finally:
            self.closed = True


class Counting:
    """A scorer whose first word on token i is confidence i/10, and whose last word is i/10 + 0.05."""

    name = "test-1"

    def __init__(self, answer=ANSWER):
        self.answer = answer

    def session(self, prompt, *, provisional):
        assert prompt is PROMPT
        assert not provisional
        return self

    def step(self, given):
        def says(index, last):
            return TokenSignal(index, index / 10 + 0.05 * last, None, None, is_final=last)

        revised = says(given.index - 1, True) if given.index > 0 else None
        return StepSignals(None if given.finish_reason else says(given.index, False), revised)

    def finish(self):
        return self.answer


STEPS = (step(0, "a"), step(1, " b"), step(2, "", token=2, special=True), step(3, "", finish="stop"))


def test_every_token_comes_with_its_last_word_and_in_order():
    begun, *tokens, ended = generate_answer(Steps(*STEPS), Counting(), Request("r", ()))
    assert begun == Begun(PROMPT)
    assert [token.step.text for token in tokens] == ["a", " b", ""]
    assert [token.signal.confidence for token in tokens] == pytest.approx([0.05, 0.15, 0.25])
    assert all(token.signal.is_final for token in tokens)
    assert (ended.text, ended.tokens, ended.finish_reason, ended.signal) == ("a b", 3, "stop", ANSWER)


def test_a_token_is_held_back_by_one_step():
    steps = Steps(*STEPS)
    taken = []
    original = steps.generate

    def watched(requests):
        for given in original(requests):
            taken.append(given.index)
            yield given

    steps.generate = watched
    answer = generate_answer(steps, Counting(), Request("r", ()))
    assert isinstance(next(answer), Begun)
    assert isinstance(next(answer), Token)
    assert taken == [0, 1]


def test_text_that_no_token_carried_is_not_lost():
    *_, ended = generate_answer(Steps(step(0, "a"), step(1, "é", finish="length")), Counting(), Request("r", ()))
    assert (ended.text, ended.rest) == ("aé", "é")


def test_closing_the_answer_closes_the_engine():
    steps = Steps(*STEPS)
    answer = generate_answer(steps, Counting(), Request("r", ()))
    next(answer)
    answer.close()
    assert steps.closed


def test_a_calibrated_answer_is_sent_number_by_number():
    sent = answer_introspection("chatcmpl-1", ANSWER, PROMPT.budget, "abcd", published=False).model_dump()
    strategy = {"label": "perceiving", "probabilities": {"perceiving": 0.7, "guessing": 0.3}, "set": ("perceiving",)}
    assert sent == {
        "id": "chatcmpl-1",
        "confidence": 0.75,
        "hallucination_risk": 0.25,
        "strategy": strategy,
        "calibrated": True,
        "probe_set": "test-1",
        "spans": ({"start": 0, "end": 1, "text": "7", "hallucination_risk": 0.125, "strategy": strategy},),
        "effective_budget": {"policy": "full", "nominal": 5, "effective": 5, "prompt_tokens": 5},
        "scores": {"mean_logprob": -0.5},
        "in_domain": 0.9,
        "published": False,
        "feature_schema": "abcd",
    }


def test_a_claim_token_is_sent_with_both_factors_and_other_tokens_without():
    risk = HallucinationRisk(0.5, 0.25, 0.125, "claim")
    claim = token_introspection(TokenSignal(3, 0.5, risk, STRATEGY, is_final=True)).model_dump()
    assert claim.pop("strategy")["label"] == "perceiving"
    assert claim == {"confidence": 0.5, "hallucination_risk": 0.5, "internal": 0.25, "prior": 0.125, "kind": "claim", "final": True}
    assert token_introspection(TokenSignal(0, None, None, None, is_final=False)).model_dump() == {"final": False}


@pytest.mark.parametrize(
    ("signals", "gone"),
    [
        (["confidence"], {"hallucination_risk", "spans", "strategy", "scores"}),
        (["hallucination_risk"], {"confidence", "strategy", "scores"}),
        ([], {"confidence", "hallucination_risk", "spans", "strategy", "scores"}),
    ],
)
def test_only_the_signals_asked_for_are_sent(signals, gone):
    options = IntrospectionOptions(signals=signals)
    everything = set(answer_introspection("i", ANSWER, PROMPT.budget, "abcd").model_dump())
    sent = answer_introspection("i", ANSWER, PROMPT.budget, "abcd", options=options).model_dump()
    assert everything - set(sent) == gone
    spans = sent.get("spans", ())
    assert all("strategy" not in span for span in spans)


def test_no_spans_means_no_claims_only_where_a_probe_set_says_so():
    calibrated = replace(ANSWER, spans=())
    assert answer_introspection("i", calibrated, PROMPT.budget, "abcd").model_dump()["spans"] == ()
    assert "spans" not in answer_introspection("i", replace(calibrated, calibrated=False), PROMPT.budget, "abcd").model_dump()
