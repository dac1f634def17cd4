"""Several answers to one prompt: it is read once, and no answer can tell."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from answers import assert_same_answer, finish
from families import TinyModel
from PIL import Image

from introspect.async_engine import AsyncEngine
from introspect.engine import Engine
from introspect.errors import RequestError
from introspect.pool import SlotPool
from introspect.prefill import Prefill
from introspect.prompt import EncodedPrompt
from introspect.types import Budget, Request, SamplingParams, StepTrace


def choices(tiny: TinyModel, budget: Budget, count: int) -> list[EncodedPrompt]:
    """One prompt, encoded again for each: drawn answers of their own seeds and lengths."""
    made = []
    for number in range(count):
        prompt = tiny.prompt(3, max_tokens=4 + number, budget=budget)
        sampling = replace(prompt.request.sampling, temperature=1.0, seed=number)
        made.append(replace(prompt, request=replace(prompt.request, id=f"choice-{number}", sampling=sampling)))
    return made


@contextmanager
def reads(tiny: TinyModel) -> Iterator[list[int]]:
    """How many prompts each call of the vision tower and what follows reads."""
    seen: list[int] = []

    def count(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        seen.append(len(kwargs["input_ids"]))

    handle = tiny.loaded.model.model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


@pytest.mark.parametrize(
    "budget", [Budget(), Budget("snapkv", entries=20), Budget("coverage", ratio=0.3), Budget("adakv-paper", ratio=0.3)]
)
def test_choices_of_one_prompt_read_it_once_and_answer_as_each_alone(tiny: TinyModel, budget: Budget) -> None:
    prompts = choices(tiny, budget, 3)
    alone = [list(Engine(tiny.loaded, slack=5).generate_encoded([prompt])) for prompt in prompts]
    with reads(tiny) as read:
        steps = list(Engine(tiny.loaded, slack=5).generate_encoded(prompts))
    assert read == [1]
    for number, prompt in enumerate(prompts):
        mine = [step for step in steps if step.prompt.request_id == prompt.request.id]
        assert_same_answer(mine, alone[number])
        assert mine[0].prompt.budget == alone[number][0].prompt.budget
        np.testing.assert_array_equal(mine[0].prompt.retention, alone[number][0].prompt.retention)
    assert len({tuple(step.token_id for step in run) for run in alone}) == 3


def test_a_copy_holds_the_same_entries_to_the_bit(tiny: TinyModel) -> None:
    pool = SlotPool(tiny.loaded.num_layers, tiny.loaded.num_kv_heads, tiny.loaded.device)
    work = Prefill(tiny.loaded, [tiny.prompt(1, budget=Budget("adakv", ratio=0.3))], pool, slack=[3])
    work.run()
    first = work.sequences[0].runs
    second = pool.copy(first, 7, tracked=True)
    assert torch.equal(second.length, first.length)
    assert torch.equal(second.capacity, first.length + 7)
    for layer in range(tiny.loaded.num_layers):
        one, other = (pool.of(layer, [runs]) for runs in (first, second))
        for head, length in enumerate(one.length[0].tolist()):
            ours, theirs = (slice(int(arena.start[0, head]), int(arena.start[0, head]) + length) for arena in (one, other))
            assert not set(range(*ours.indices(10**6))) & set(range(*theirs.indices(10**6)))
            for column in ("k", "v", "position", "segment"):
                assert torch.equal(getattr(one, column)[ours], getattr(other, column)[theirs])
    pool.release(first)
    pool.release(second)
    assert pool.bytes().owned == 0


def test_who_comes_while_the_prompt_is_read_joins_at_its_end(tiny_llava: TinyModel) -> None:
    scheduler = Engine(tiny_llava.loaded, prefill_chunk=64).scheduler()
    running = scheduler.submit(tiny_llava.prompt(0, max_tokens=20))
    scheduler.step()
    prompts = choices(tiny_llava, Budget(), 3)
    with reads(tiny_llava) as read:
        first = scheduler.submit(prompts[0])
        scheduler.step()
        late = [scheduler.submit(prompt) for prompt in prompts[1:]]
        found = finish(scheduler)
    assert read == [1]
    for answer, prompt in zip([first, *late], prompts, strict=True):
        steps = [step for step in found[answer] if isinstance(step, StepTrace)]
        assert_same_answer(steps, list(Engine(tiny_llava.loaded, prefill_chunk=64).generate_encoded([prompt])))
    assert running in found
    assert scheduler.kv_bytes.owned == 0


def test_without_room_a_choice_waits_and_keeps_its_place_in_line(tiny_llava: TinyModel) -> None:
    prompts = choices(tiny_llava, Budget(), 3)
    other = tiny_llava.prompt(7, max_tokens=2)
    scheduler = Engine(tiny_llava.loaded, max_batch=2).scheduler()
    with reads(tiny_llava) as read:
        answers = [scheduler.submit(prompt) for prompt in (*prompts, other)]
        scheduler.step()
        assert [answer.runs is not None for answer in answers] == [True, True, False, False]
        found = finish(scheduler)
    assert read == [1, 1, 1]
    assert all(isinstance(step, StepTrace) for steps in found.values() for step in steps)


def test_a_cancelled_reader_leaves_the_others_their_answers(tiny_llava: TinyModel) -> None:
    prompts = choices(tiny_llava, Budget(), 3)
    scheduler = Engine(tiny_llava.loaded, prefill_chunk=64).scheduler()
    scheduler.submit(tiny_llava.prompt(0, max_tokens=20))
    scheduler.step()
    answers = [scheduler.submit(prompt) for prompt in prompts]
    scheduler.step()
    scheduler.cancel(answers[0])
    found = finish(scheduler)
    assert answers[0] not in found
    for answer in answers[1:]:
        assert isinstance(found[answer][-1], StepTrace)
    assert scheduler.kv_bytes.owned == 0


@pytest.mark.parametrize("change", ["token", "picture", "budget", "question"])
def test_what_differs_is_read_apart(tiny_llava: TinyModel, change: str) -> None:
    first, second = choices(tiny_llava, Budget("random", entries=30), 2)
    if change == "token":
        ids = second.token_ids.clone()
        ids[-2] += 1
        second = replace(second, token_ids=ids)
    elif change == "picture":
        second = replace(second, pixels={name: value + 0.5 for name, value in second.pixels.items()})
    elif change == "budget":
        second = replace(second, request=replace(second.request, budget=Budget("random", entries=30, seed=1)))
    else:
        second = replace(second, segments=np.where(second.segments == 3, 1, second.segments).astype(np.uint8))
    with reads(tiny_llava) as read:
        steps = list(Engine(tiny_llava.loaded).generate_encoded([first, second]))
    assert read == [2]
    mine = [step for step in steps if step.prompt.request_id == second.request.id]
    assert_same_answer(mine, list(Engine(tiny_llava.loaded).generate_encoded([second])))


def test_an_async_engine_encodes_the_choices_of_a_request_once(tiny_llava: TinyModel) -> None:
    engine = AsyncEngine(Engine(tiny_llava.loaded))
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (96, 96, 3), dtype=np.uint8))
    request = Request.ask("a", "how many red ?", picture, sampling=SamplingParams(max_tokens=3, temperature=1.0, seed=0))
    again = replace(request, id="b", sampling=replace(request.sampling, seed=1))
    first, second = engine.encode(request), engine.encode(again)
    assert second.token_ids is first.token_ids
    assert second.request is again
    longer = engine.encode(replace(request, sampling=replace(request.sampling, max_tokens=4)))  # may not fit where the other did
    assert longer.token_ids is not first.token_ids
    with pytest.raises(RequestError, match="exceed the context"):
        engine.encode(replace(request, sampling=replace(request.sampling, max_tokens=10**6)))
    other = engine.encode(Request.ask("c", "how many red ?", picture, sampling=request.sampling))
    assert other.token_ids is not longer.token_ids
    assert torch.equal(other.token_ids, first.token_ids)
