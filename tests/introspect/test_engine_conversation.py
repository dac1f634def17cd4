"""The second turn continues the first one's cache, and says what a fresh run would."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from PIL import Image

from introspect.conversation import Conversation
from introspect.engine import Engine
from introspect.loading import LoadedModel, load_model
from introspect.types import Budget, ImagePart, Message, Request, SamplingParams, StepTrace, TextPart


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model()


def picture(seed: int = 0) -> ImagePart:
    return ImagePart(Image.fromarray(np.random.default_rng(seed).integers(0, 256, (96, 96, 3), dtype=np.uint8)))


def turns(answers: list[str], budget: Budget | None = None, seed: int = 0) -> Request:
    """The conversation after some answers."""
    questions = ("what digit is at row 2 column 3 ?", "how many red ?", "is there a 7 ?")
    messages = [Message("user", (picture(seed), TextPart(questions[0])))]
    for answer, question in zip(answers, questions[1:], strict=False):
        messages += [Message("assistant", (TextPart(answer),)), Message("user", (TextPart(question),))]
    return Request(f"turn{len(answers)}", tuple(messages), SamplingParams(max_tokens=12), budget or Budget())


def text_of(steps: Iterable[StepTrace]) -> str:
    return "".join(step.text for step in steps)


def test_every_turn_equals_a_fresh_run_of_the_whole_conversation(loaded: LoadedModel) -> None:
    engine = Engine(loaded)
    talk, answers = Conversation(engine), list[str]()
    for turn in range(3):
        ours, fresh = list(talk.send(turns(answers))), list(engine.generate([turns(answers)]))
        assert talk.reused == 0 if turn == 0 else talk.reused > 150  # the picture is not read again
        assert [(s.token_id, s.position, s.text, s.finish_reason) for s in ours] == [
            (s.token_id, s.position, s.text, s.finish_reason) for s in fresh
        ]
        assert ours[0].prompt.budget == fresh[0].prompt.budget
        np.testing.assert_array_equal(ours[0].prompt.logical, fresh[0].prompt.logical)
        for a, b in zip(ours, fresh, strict=True):
            if a.logits is not None and b.logits is not None:
                assert a.logits.logprob == pytest.approx(b.logits.logprob, abs=1e-4)
            if a.heads is not None and b.heads is not None:
                np.testing.assert_array_equal(a.heads.retained, b.heads.retained)
                np.testing.assert_allclose(a.heads.mass, b.heads.mass, atol=1e-4)
        answers.append(text_of(ours) or "yes")
    assert engine.kv_bytes.owned > 0
    talk.close()
    assert engine.kv_bytes.allocated == 0


def test_under_a_budget_positions_stay_right_and_nothing_more_is_lost(loaded: LoadedModel) -> None:
    budget = Budget("snapkv", entries=40)
    engine = Engine(loaded)
    talk = Conversation(engine)
    first = list(talk.send(turns([], budget)))
    answer = text_of(first) or "yes"
    second = list(talk.send(turns([answer], budget)))
    prompt = engine.encode(turns([answer], budget))
    assert [s.position for s in second] == list(range(prompt.length - 1, prompt.length - 1 + len(second)))
    assert second[0].heads is not None
    assert first[0].heads is not None
    held = second[0].heads.retained.sum(-1)
    dropped = first[0].prompt.budget.prompt_tokens - 40
    assert (held == prompt.length - dropped).all()  # all but what the first turn's budget dropped
    assert second[0].prompt.budget.effective == prompt.length - dropped
    assert (second[0].heads.self_mass > 0).all()  # the entry at the query's own position is its own
    talk.close()


def test_a_turn_longer_than_the_slack_is_re_budgeted_while_it_is_fed(loaded: LoadedModel) -> None:
    budget, slack = Budget("snapkv", entries=40), 8
    talk = Conversation(Engine(loaded, slack=slack))
    answer = text_of(talk.send(turns([], budget))) or "yes"
    second = list(talk.send(turns([answer], budget)))
    held = np.array([step.heads.retained.sum(-1) for step in second if step.heads is not None])
    assert held[0].mean() == second[0].prompt.budget.effective
    assert held.max() <= 40 + 2 * slack  # what the first turn left, and the slack
    talk.close()


def test_another_picture_or_a_turn_left_early_begins_anew(loaded: LoadedModel) -> None:
    engine = Engine(loaded)
    talk = Conversation(engine)
    list(talk.send(turns([])))
    other = turns(["yes"], seed=1)
    ours = [s.token_id for s in talk.send(other)]
    assert talk.reused == 0
    assert ours == [s.token_id for s in engine.generate([other])]
    left = talk.send(turns(["yes", "3"], seed=1))
    next(left)
    assert talk.reused > 150
    left.close()
    assert engine.kv_bytes.allocated == 0
    assert [s.token_id for s in talk.send(other)] == ours
    talk.close()
