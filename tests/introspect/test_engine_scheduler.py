"""Requests join, leave, fail and wait, and nobody else notices."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from answers import assert_same_answer, finish
from families import TinyModel

from introspect.answer import Answer
from introspect.engine import Engine
from introspect.errors import IntrospectError, RequestError
from introspect.limits import bytes_of, need_of
from introspect.prompt import EncodedPrompt
from introspect.types import Budget, SamplingParams, StepTrace
from introspect_kernels import Arena

BUDGETS = (
    Budget(),
    Budget("snapkv", entries=20),
    Budget("random", ratio=0.4, seed=3),
    Budget("adakv", ratio=0.3),
    Budget("pyramidkv", entries=40),
)


def prompt_of(tiny: TinyModel, seed: int, *, max_tokens: int = 5, signals: bool = True) -> EncodedPrompt:
    """Prompts that differ in content, budget and length of the answer."""
    prompt = tiny.prompt(seed, max_tokens=max_tokens, budget=BUDGETS[seed % len(BUDGETS)])
    return replace(prompt, request=replace(prompt.request, signals=signals))


def test_answers_do_not_depend_on_who_joins_and_leaves(tiny_llava: TinyModel) -> None:
    rng = np.random.default_rng(0)
    prompts = [prompt_of(tiny_llava, seed, max_tokens=int(rng.integers(2, 9)), signals=seed % 3 > 0) for seed in range(6)]
    scheduler = Engine(tiny_llava.loaded, max_batch=5, prefill_chunk=64).scheduler()
    numbers: dict[Answer, int] = {}
    steps: dict[int, list[StepTrace]] = {}
    waiting, left = list(enumerate(prompts)), set[int]()
    while waiting or scheduler.has_work:
        if waiting and rng.random() < 0.6:
            number, prompt = waiting.pop(0)
            numbers[scheduler.submit(prompt)] = number
        for answer, event in scheduler.step():
            assert isinstance(event, StepTrace)
            steps.setdefault(numbers[answer], []).append(event)
            if numbers[answer] in (2, 5) and event.index == 1:
                scheduler.cancel(answer)
                left.add(numbers[answer])
    assert left == {2, 5}
    for number, prompt in enumerate(prompts):
        alone = list(Engine(tiny_llava.loaded, prefill_chunk=64).generate_encoded([prompt]))
        assert_same_answer(steps[number], alone[:2] if number in left else alone)


def test_memory_is_what_the_budgets_promise_plus_slack_and_free_at_once(tiny: TinyModel) -> None:
    engine = Engine(tiny.loaded)
    scheduler = engine.scheduler()
    prompts = [prompt_of(tiny, seed, max_tokens=4 + seed) for seed in range(4)]
    answers = [scheduler.submit(prompt) for prompt in prompts]
    while scheduler.waiting or any(answer.runs is None for answer in answers):
        scheduler.step()
    head_dim = (
        tiny.loaded.model.config.get_text_config().head_dim if hasattr(tiny.loaded.model.config.get_text_config(), "head_dim") else 16
    )
    slot = 2 * head_dim * 4 + 4 + 1  # key, value, position, segment
    promised = 0
    for answer, prompt in zip(answers, prompts, strict=True):
        assert answer.info is not None
        slack = prompt.request.sampling.max_tokens + 1
        for window in tiny.loaded.windows:
            kept = answer.info.budget.effective - 1 if window is None else min(window - 1, prompt.length - 1)
            promised += round((kept + slack) * tiny.loaded.num_kv_heads) * slot
    assert engine.kv_bytes.owned == promised
    assert engine.kv_bytes.allocated == promised  # they came together: nothing is left between them
    before = engine.kv_bytes
    scheduler.cancel(answers[0])
    freed = bytes_of(tiny.loaded, [need_of(tiny.loaded, prompts[0], engine.limits)])
    assert engine.kv_bytes.owned == before.owned - freed
    for answer in answers[1:]:
        scheduler.cancel(answer)
    assert (engine.kv_bytes.allocated, engine.kv_bytes.owned, engine.kv_bytes.filled) == (0, 0, 0)


def test_one_bad_request_ends_alone(tiny_llava: TinyModel) -> None:
    good = prompt_of(tiny_llava, 1)
    alone = list(Engine(tiny_llava.loaded).generate_encoded([good]))
    bad_stop = prompt_of(tiny_llava, 2)
    bad_stop = replace(bad_stop, request=replace(bad_stop.request, sampling=SamplingParams(stop=(7,))))  # type: ignore[arg-type]
    bad_picture = replace(good, pixels={"pixel_values": good.pixels["pixel_values"][:, :2]})
    scheduler = Engine(tiny_llava.loaded).scheduler()
    keeps, stops, looks = scheduler.submit(good), scheduler.submit(bad_stop), scheduler.submit(bad_picture)
    forced = scheduler.submit(prompt_of(tiny_llava, 3), [10, 10**6, 11])
    broken = prompt_of(tiny_llava, 6)
    broken.token_ids[-1] = 10**6  # no such token: the forward call of the whole batch fails
    breaks = scheduler.submit(broken)
    found = finish(scheduler)
    assert_same_answer([step for step in found[keeps] if isinstance(step, StepTrace)], alone)
    assert isinstance(found[stops][-1], TypeError)
    for answer, error in ((looks, RuntimeError), (breaks, IndexError)):
        assert isinstance(found[answer][-1], error)
        assert len(found[answer]) == 1
    assert isinstance(found[forced][-1], RequestError)
    assert [step.token_id for step in found[forced][:-1] if isinstance(step, StepTrace)] == [10]
    assert scheduler.kv_bytes.owned == 0


def test_logits_that_are_no_numbers_end_their_answer_alone(tiny_llava: TinyModel) -> None:
    good = prompt_of(tiny_llava, 1)
    alone = list(Engine(tiny_llava.loaded).generate_encoded([good]))
    blind = replace(good, pixels={"pixel_values": good.pixels["pixel_values"] * torch.nan})
    scheduler = Engine(tiny_llava.loaded).scheduler()
    keeps, ends = scheduler.submit(good), scheduler.submit(blind)
    found = finish(scheduler)
    assert_same_answer([step for step in found[keeps] if isinstance(step, StepTrace)], alone)
    assert len(found[ends]) == 1
    assert isinstance(found[ends][0], IntrospectError)
    assert "not numbers" in str(found[ends][0])


def test_an_error_in_a_batch_comes_after_the_others_answers(tiny_llava: TinyModel) -> None:
    good, bad = prompt_of(tiny_llava, 1), prompt_of(tiny_llava, 2)
    bad = replace(bad, request=replace(bad.request, sampling=SamplingParams(stop=(7,))))  # type: ignore[arg-type]
    steps, done = list[StepTrace](), list[tuple[int, int]]()
    with pytest.raises(TypeError):
        steps.extend(Engine(tiny_llava.loaded).generate_encoded([bad, good], progress=lambda n, of: done.append((n, of))))
    assert steps[-1].finish_reason is not None
    assert {step.prompt.request_id for step in steps} == {"r1"}
    assert done == [(1, 2), (2, 2)]


def test_requests_beyond_the_memory_wait_and_those_that_never_fit_are_refused(tiny_llava: TinyModel) -> None:
    prompts = [prompt_of(tiny_llava, 5 * seed) for seed in range(4)]  # policy full
    one = bytes_of(tiny_llava.loaded, [need_of(tiny_llava.loaded, prompts[0], Engine(tiny_llava.loaded).limits)])
    engine = Engine(tiny_llava.loaded, kv_bytes=int(2.5 * one))
    scheduler = engine.scheduler()
    for prompt in prompts:
        scheduler.submit(prompt)
    most, ended = 0, 0
    while scheduler.has_work:
        ended += sum(isinstance(event, StepTrace) and event.finish_reason is not None for _, event in scheduler.step())
        most = max(most, scheduler.running)
        assert engine.kv_bytes.allocated <= int(2.5 * one)
    assert (most, ended) == (2, 4)
    with pytest.raises(RequestError, match="bytes of KV cache, and the engine has"):
        list(Engine(tiny_llava.loaded, kv_bytes=one - 1).generate_encoded(prompts[:1]))


def test_without_signals_no_statistics_are_computed(tiny_llava: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    from introspect import attention

    asked, original = [], attention.run

    def watched(q: torch.Tensor, arena: Arena, position: torch.Tensor, scale: float, stats: bool, impl: str | None) -> object:
        asked.append((stats, q.shape[0]))
        return original(q, arena, position, scale, stats, impl)

    monkeypatch.setattr(attention, "run", watched)
    silent, measured = prompt_of(tiny_llava, 1, signals=False), prompt_of(tiny_llava, 1)
    ours = list(Engine(tiny_llava.loaded).generate_encoded([silent]))
    assert {stats for stats, _ in asked} == {False}
    assert all(step.heads is None for step in ours)
    theirs = list(Engine(tiny_llava.loaded).generate_encoded([measured]))
    assert [(s.token_id, s.text, s.finish_reason) for s in ours] == [(s.token_id, s.text, s.finish_reason) for s in theirs]
    asked.clear()
    list(Engine(tiny_llava.loaded).generate_encoded([silent, measured, prompt_of(tiny_llava, 2)]))
    assert {(False, 1), (True, 2)} <= set(asked)


def test_several_share_a_step_and_late_ones_join(tiny_llava: TinyModel) -> None:
    scheduler = Engine(tiny_llava.loaded, max_batch=2).scheduler()
    first = scheduler.submit(prompt_of(tiny_llava, 0, max_tokens=8))
    scheduler.step()
    second, third = scheduler.submit(prompt_of(tiny_llava, 1, max_tokens=2)), scheduler.submit(prompt_of(tiny_llava, 2, max_tokens=2))
    order = []
    while scheduler.has_work:
        order += [(answer, event.index) for answer, event in scheduler.step() if isinstance(event, StepTrace)]
    assert order.index((second, 0)) < order.index((first, 3))
    assert order.index((third, 0)) > order.index((second, 2))  # two places only
    assert order.index((third, 0)) < order.index((first, 7))
