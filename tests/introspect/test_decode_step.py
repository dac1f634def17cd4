"""The device part of a decode step: idle rows change nothing, the host reads nothing, and steps are kept for batches of their shape."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from families import TinyModel
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from introspect import attention, captured, scheduler
from introspect.answer import Answer
from introspect.decoding import DecodeStep
from introspect.engine import Engine
from introspect.forward import Forward
from introspect.lanes import wants
from introspect.pool import SlotPool
from introspect.prefill import Prefill
from introspect.types import Budget, SamplingParams, StepTrace
from introspect_kernels import Arena
from introspect_kernels.decode.operator import decode_attention_operator
from introspect_kernels.decode.packing import PackedStats


def ready(tiny: TinyModel, seeds: range) -> tuple[SlotPool, list[Answer]]:
    """Answers whose prompts are read, each by itself."""
    loaded = tiny.loaded
    pool = SlotPool(loaded.num_layers, loaded.num_kv_heads, loaded.device)
    answers = []
    for seed in seeds:
        prompt = tiny.prompt(seed, budget=Budget("random", ratio=0.3 + 0.1 * (seed % 4), seed=seed))
        prompt = replace(prompt, request=replace(prompt.request, sampling=SamplingParams(temperature=float(seed % 2), seed=seed)))
        work = Prefill(loaded, [prompt], pool, slack=[8], tracked=[seed % 3 == 0])
        work.run()
        answer = Answer(prompt)
        answer.info, answer.runs = work.sequences[0].info, work.sequences[0].runs
        answers.append(answer)
    return pool, answers


def step_of(tiny: TinyModel, pool: SlotPool, answers: list[Answer], rows: int, *, influence: bool = False) -> DecodeStep:
    """One lane of so many rows, some of them idle."""
    for answer in answers:
        pool.track(answer.runs, influence)  # type: ignore[arg-type]
        answer.prompt = replace(answer.prompt, request=replace(answer.prompt.request, influence=influence))
    forward = Forward(tiny.loaded, record_after=None)
    step = DecodeStep(tiny.loaded, forward, pool, ((wants(answers[0]), rows),), parking=pool.park())
    step.fill([answers])
    return step


def test_what_idle_rows_are_changes_no_bit_of_the_others(tiny: TinyModel) -> None:
    pool, answers = ready(tiny, range(4))
    full = step_of(tiny, pool, answers, 4).run()
    pool, fewer = ready(tiny, range(3))
    step = step_of(tiny, pool, fewer, 4)
    padded = step.run()
    assert padded.tokens == full.tokens[:3]
    assert padded.logits == full.logits[:3]
    for one, other in zip(padded.heads, full.heads[:3], strict=True):
        for block in fields(one):
            np.testing.assert_array_equal(getattr(one, block.name), getattr(other, block.name), err_msg=block.name)
    before = [answer.runs.length for answer in fewer if answer.runs is not None]
    step.write_back()
    for answer, length, window in ((a, n, w) for a, n in zip(fewer, before, strict=True) for w in enumerate(tiny.loaded.windows)):
        assert answer.runs is not None
        grown = answer.runs.length[window[0]] - length[window[0]]
        assert (grown == 1).all() if window[1] is None else (grown <= 1).all()


def test_a_step_that_fails_adds_nothing(tiny: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    pool, answers = ready(tiny, range(2))
    step = step_of(tiny, pool, answers, 2)
    state = [tensor.clone() for part in step.lanes[0]._parts for tensor in part]
    original, layers = attention.run, list[int]()

    def fails_late(*args: Any) -> Any:
        layers.append(1)
        if len(layers) == tiny.loaded.num_layers:
            raise RuntimeError("in the last layer")
        return original(*args)

    with monkeypatch.context() as patched:
        patched.setattr(attention, "run", fails_late)
        with pytest.raises(RuntimeError, match="in the last layer"):
            step.run()
    assert all(torch.equal(a, b) for a, b in zip(state, [t for part in step.lanes[0]._parts for t in part], strict=True))
    again, fresh = step.run(), step_of(tiny, *ready(tiny, range(2)), 2).run()
    assert again.tokens == fresh.tokens
    assert again.logits == fresh.logits


def fake_attention(
    q: torch.Tensor, arena: Arena, position: torch.Tensor, scale: float, stats: bool, impl: str | None
) -> tuple[torch.Tensor, PackedStats | None]:
    """The attention operator as torch knows it, whose inside is the kernels' own affair."""
    a = arena
    out, *packed = decode_attention_operator(
        q, a.k, a.v, a.position, a.segment, a.start, a.length, a.capacity, a.received, a.queries, position, scale, stats, impl
    )
    return out, PackedStats(*packed) if stats else None


@pytest.mark.parametrize("influence", [False, True])
def test_the_host_reads_no_value_in_any_family(family: TinyModel, monkeypatch: pytest.MonkeyPatch, influence: bool) -> None:
    monkeypatch.setattr(attention, "run", fake_attention)
    pool, answers = ready(family, range(3))
    step = step_of(family, pool, answers, 4, influence=influence)
    step.load()
    with torch.inference_mode(), FakeTensorMode(allow_non_fake_inputs=True):
        outputs = step.compute(True, True)
    assert outputs.ids.shape[0] == outputs.reals.shape[0] == 4
    assert outputs.heads[0] is not None
    assert outputs.heads[0].mass.shape == (4, family.loaded.num_layers, family.loaded.num_heads, 6)
    if influence:
        assert outputs.received[0] is not None
        assert outputs.received[0].shape == (4, 2, family.loaded.num_layers, family.loaded.num_kv_heads)
    else:
        assert outputs.received == (None,)


def test_a_value_that_the_host_reads_is_noticed(tiny_llava: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "run", lambda q, *rest: fake_attention(q, *rest) if float(q.sum()) else None)
    pool, answers = ready(tiny_llava, range(1))
    step = step_of(tiny_llava, pool, answers, 1)
    step.load()
    with torch.inference_mode(), FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(DataDependentOutputException):
        step.compute(True, True)


class Counted(captured.Captured[Any]):
    """Stands for graphs where there is no GPU: the device part runs as it is, and steps are counted."""

    made = 0

    def __init__(self, compute: Any) -> None:
        super().__init__(compute)
        Counted.made += 1

    def __call__(self, forces: bool, samples: bool) -> Any:
        return self._compute(forces, samples)


def test_a_batch_with_idle_rows_answers_as_one_without(tiny: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests join, leave and are re-budgeted in steps of 1, 2 and 4 rows that are kept from batch to batch."""
    prompts = [tiny.prompt(seed, max_tokens=3 + 5 * (seed % 3), budget=Budget("random", ratio=0.4, seed=seed)) for seed in range(5)]
    prompts[1] = replace(
        prompts[1], request=replace(prompts[1].request, influence=True, budget=Budget(), sampling=SamplingParams(max_tokens=14))
    )
    prompts[2] = replace(prompts[2], request=replace(prompts[2].request, signals=False))
    engine = Engine(tiny.loaded, max_batch=4, slack=6)
    alone = [list(Engine(tiny.loaded, slack=6).generate_encoded([prompt])) for prompt in prompts]
    monkeypatch.setattr("introspect.decoding.Captured", Counted)
    Counted.made = 0
    running = engine.scheduler()
    running._captures = True
    running._pool = SlotPool(tiny.loaded.num_layers, tiny.loaded.num_kv_heads, tiny.loaded.device, shrinks=False)
    numbers = {running.submit(prompt): number for number, prompt in enumerate(prompts)}
    found: list[list[StepTrace]] = [[] for _ in prompts]
    steps = 0
    while running.has_work:
        steps += 1
        for answer, event in running.step():
            assert isinstance(event, StepTrace)
            found[numbers[answer]].append(event)
    for ours, theirs in zip(found, alone, strict=True):
        assert [(step.token_id, step.position, step.finish_reason) for step in ours] == [
            (step.token_id, step.position, step.finish_reason) for step in theirs
        ]
        for step, expected in zip(ours, theirs, strict=True):
            if step.logits is not None and expected.logits is not None:
                assert step.logits.logprob == pytest.approx(expected.logits.logprob, abs=1e-4)
            assert (step.heads is None) == (expected.heads is None)
            if step.heads is not None and expected.heads is not None:
                np.testing.assert_array_equal(step.heads.retained, expected.heads.retained)
                np.testing.assert_allclose(step.heads.lse, expected.heads.lse, atol=1e-4)
    told = [run[-1].influence for run in (found[1], alone[1])]
    assert np.isfinite(told[0][:4]).all()  # type: ignore[index]
    np.testing.assert_allclose(told[0], told[1], atol=1e-5)  # type: ignore[arg-type]
    assert 2 <= Counted.made < steps
    assert running.kv_bytes.allocated > running.kv_bytes.owned > 0  # kept for the next ones; what is owned is parked


def test_rows_come_in_powers_of_two_only_where_steps_are_captured(tiny_llava: TinyModel) -> None:
    plain = scheduler.Scheduler(tiny_llava.loaded, Engine(tiny_llava.loaded, max_batch=6).limits)
    assert [plain._rows(n) for n in range(1, 7)] == [1, 2, 3, 4, 5, 6]
    plain._captures = True
    assert [plain._rows(n) for n in range(1, 7)] == [1, 2, 4, 4, 6, 6]
