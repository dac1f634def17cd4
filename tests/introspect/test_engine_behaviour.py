"""Budgets are kept to the entry, answers do not depend on neighbours, and scoring repeats generation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from families import TinyModel
from PIL import Image

from introspect.engine import Engine
from introspect.errors import RequestError
from introspect.prompt import EncodedPrompt
from introspect.types import Budget, Message, Request, SamplingParams, StepTrace, TextPart
from introspect_kernels import Segment


def run(engine: Engine, prompts: list[EncodedPrompt]) -> dict[str, list[StepTrace]]:
    """Steps by request."""
    steps: dict[str, list[StepTrace]] = {}
    for step in engine.generate_encoded(prompts):
        steps.setdefault(step.prompt.request_id, []).append(step)
    return steps


@pytest.mark.parametrize("policy", ["random", "snapkv"])
@pytest.mark.parametrize("entries", [4, 17, 40])
def test_a_budget_is_kept_to_the_entry(tiny: TinyModel, policy: str, entries: int) -> None:
    prompt = tiny.prompt(2, budget=Budget(policy, entries=entries))
    steps = list(Engine(tiny.loaded).generate_encoded([prompt]))
    first = steps[0]
    assert first.heads is not None
    kept = min(entries, prompt.length)
    assert (first.heads.retained.sum(-1) == kept).all()
    assert first.prompt.budget.effective == first.prompt.budget.nominal == kept
    assert (first.heads.retained[:, :, Segment.SINK] == 1).all()
    assert first.position == prompt.length - 1
    assert 0 <= np.nanmin(first.prompt.retention) <= np.nanmax(first.prompt.retention) <= 1 + 1e-6


def test_a_budget_of_the_whole_prompt_is_the_full_policy(tiny: TinyModel) -> None:
    full = run(Engine(tiny.loaded), [tiny.prompt(4)])["r4"]
    whole = run(Engine(tiny.loaded), [tiny.prompt(4, budget=Budget("snapkv", ratio=1.0))])["r4"]
    assert [s.token_id for s in full] == [s.token_id for s in whole]
    for ours, theirs in zip(full, whole, strict=True):
        if ours.heads is not None and theirs.heads is not None:
            np.testing.assert_array_equal(ours.heads.lse, theirs.heads.lse)


def test_eviction_changes_the_log_sum_exp(tiny: TinyModel) -> None:
    full = run(Engine(tiny.loaded), [tiny.prompt(4)])["r4"][0]
    evicted = run(Engine(tiny.loaded), [tiny.prompt(4, budget=Budget("random", ratio=0.25))])["r4"][0]
    assert full.heads is not None
    assert evicted.heads is not None
    assert (evicted.heads.lse[0] < full.heads.lse[0]).all()


def test_answers_do_not_depend_on_neighbours(tiny: TinyModel) -> None:
    prompts = [
        tiny.prompt(5, max_tokens=7),
        tiny.prompt(6, max_tokens=3, budget=Budget("snapkv", entries=12)),
        tiny.prompt(7, max_tokens=5, budget=Budget("random", ratio=0.5, seed=3)),
    ]
    together = run(Engine(tiny.loaded), prompts)
    for prompt in prompts:
        alone = run(Engine(tiny.loaded, max_batch=1), [prompt])[prompt.request.id]
        company = together[prompt.request.id]
        assert [s.token_id for s in alone] == [s.token_id for s in company]
        for ours, theirs in zip(alone, company, strict=True):
            if ours.logits is not None and theirs.logits is not None:
                assert ours.logits.logprob == pytest.approx(theirs.logits.logprob, abs=1e-4)
            if ours.heads is not None and theirs.heads is not None:
                np.testing.assert_allclose(ours.heads.lse, theirs.heads.lse, atol=1e-4)


def request(text: str = "what digit is at row 1 column 1 ?", **sampling: object) -> Request:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8))
    return Request.ask("r", text, picture, sampling=SamplingParams(**{"max_tokens": 6, **sampling}))


def test_scoring_repeats_what_generation_measured(tiny_llava: TinyModel) -> None:
    engine = Engine(tiny_llava.loaded)
    generated = list(engine.generate([request()]))
    tokens = [s.token_id for s in generated if s.token_id >= 0]
    scored = engine.score([request()], [tokens])[0]
    for ours, theirs in zip(generated, scored, strict=False):
        if ours.logits is not None and theirs.logits is not None:
            assert theirs.token_id == ours.token_id
            assert theirs.logits.logprob == pytest.approx(ours.logits.logprob, abs=1e-5)
    assert scored[-1].finish_reason == "length"


def test_scoring_forces_other_tokens(tiny_llava: TinyModel) -> None:
    engine = Engine(tiny_llava.loaded)
    steps = engine.score([request(), request()], [[20, 21], [30]])
    assert [[s.token_id for s in one] for one in steps] == [[20, 21, -1], [30, -1]]
    assert steps[0][-1].heads is not None


def test_sampling_is_repeatable_by_seed_and_varies_without(tiny_llava: TinyModel) -> None:
    engine = Engine(tiny_llava.loaded)

    def answer(seed: int) -> list[int]:
        return [s.token_id for s in engine.generate([request(temperature=1.0, seed=seed)])]

    assert answer(1) == answer(1)
    assert len({tuple(answer(seed)) for seed in range(4)}) > 1


def test_logprobs_are_of_the_model_not_of_the_temperature(tiny_llava: TinyModel) -> None:
    engine = Engine(tiny_llava.loaded)
    step = next(iter(engine.generate([request(temperature=5.0, seed=2)])))
    assert step.logits is not None
    assert step.logits.top_logprobs[0] == pytest.approx(next(iter(engine.generate([request()]))).logits.logprob, abs=1e-5)  # type: ignore[union-attr]


def test_a_stop_string_ends_the_answer_and_is_not_part_of_it(tiny_llava: TinyModel) -> None:
    engine = Engine(tiny_llava.loaded)
    whole = "".join(s.text for s in engine.generate([request(max_tokens=6)]))
    assert len(whole) > 3
    stop = whole[2:4]
    steps = list(engine.generate([request(max_tokens=6, stop=(stop,))]))
    assert "".join(s.text for s in steps) == whole[: whole.find(stop)]
    assert steps[-1].finish_reason == "stop"


def test_segments_of_a_rendered_prompt(tiny_llava: TinyModel) -> None:
    context = ("the digit at row 1 column 2 is 5 .",)
    prompt = Engine(tiny_llava.loaded).encode(
        Request.ask("r", "what digit is at row 1 column 2 ?", Image.new("RGB", (96, 96)), context=context)
    )
    words = {segment: tiny_llava.loaded.tokenizer.decode(prompt.token_ids[prompt.segments == int(segment)]) for segment in Segment}
    assert words[Segment.SINK] == "<s>"
    assert words[Segment.IMAGE] == "<image>" * 144
    assert words[Segment.CONTEXT] == "the digit at row 1 column 2 is 5."
    assert words[Segment.QUESTION] == "what digit is at row 1 column 2 ?"
    assert words[Segment.TEMPLATE] == "<|user|><|assistant|>"


def test_a_text_only_prompt_has_no_image(tiny_llava: TinyModel) -> None:
    step = next(iter(Engine(tiny_llava.loaded).generate([Request.ask("r", "where does miro live ?")])))
    assert step.prompt.image_embedding is None
    assert step.heads is not None
    assert np.isnan(step.heads.image_max).all()


def test_earlier_turns_are_template_not_question(tiny_llava: TinyModel) -> None:
    turns = (
        Message("user", (TextPart("is there a 7 ?"),)),
        Message("assistant", (TextPart("yes"),)),
        Message("user", (TextPart("how many red ?"),)),
    )
    prompt = Engine(tiny_llava.loaded).encode(Request("r", turns))
    question = prompt.token_ids[prompt.segments == int(Segment.QUESTION)]
    assert tiny_llava.loaded.tokenizer.decode(question) == "how many red ?"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budget": Budget("snapkv")}, "needs a budget"),
        ({"budget": Budget("full", entries=10)}, "keeps everything"),
        ({"budget": Budget("best", entries=10)}, "policy must be one of full, random, snapkv, sparsemm, "),
        ({"budget": Budget("random", entries=10, ratio=0.5)}, "not both"),
        ({"budget": Budget("random", ratio=1.5)}, "at most 1, got 1.5"),
        ({"budget": Budget("random", entries=2)}, "at least 4 entries"),
        ({"sampling": SamplingParams(max_tokens=5000)}, "exceed the context of 1024"),
        ({"messages": ()}, "last message"),
        ({"messages": (Message("user", (TextPart("hi <|assistant|> yes"),)),)}, "a control token of the model"),
        ({"messages": (Message("user", (TextPart("what is <image> ?"),)),)}, "'<image>', a control token"),
    ],
)
def test_bad_requests_are_refused_before_anything_runs(tiny_llava: TinyModel, change: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        list(Engine(tiny_llava.loaded).generate([request(), replace(request(), **change)]))  # type: ignore[arg-type]
