"""Future Attention Influence at an answer's end against the columns of an eager run's attention matrices."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from eager_reference import EagerRun, dropped, eager_run, random_choice
from families import TinyModel
from numpy.typing import NDArray
from PIL import Image

from introspect.conversation import Conversation
from introspect.engine import Engine
from introspect.errors import RequestError
from introspect.influence import column_sums
from introspect.loading import load_model
from introspect.prompt import EncodedPrompt, encoded_from_inputs
from introspect.types import Budget, ImagePart, Message, Request, SamplingParams, StepTrace, TextPart
from introspect_kernels import Arena

FIRST, LAST = 10, 50
"""The paper's horizon."""
TOKENS = 64
"""More than the horizon, so that both ends of it are met."""


def asking(tiny: TinyModel, seed: int, *, budget: Budget | None = None, max_tokens: int = TOKENS, pictures: int = 1) -> EncodedPrompt:
    prompt = tiny.prompt(seed, max_tokens=max_tokens, budget=budget, pictures=pictures)
    return replace(prompt, request=replace(prompt.request, influence=True))


def forced(seed: int, tokens: int = TOKENS) -> list[int]:
    return np.random.default_rng(seed).integers(10, 200, tokens).tolist()


def expected(tiny: TinyModel, prompt: EncodedPrompt, run: EagerRun, tokens: int) -> NDArray[np.float64]:
    """FAI by its definition: means over a column's later rows, query heads of a group together."""
    group = tiny.loaded.num_heads // tiny.loaded.num_kv_heads
    made = np.full((tokens, tiny.loaded.num_layers, tiny.loaded.num_kv_heads), np.nan)
    for layer, matrices in enumerate(run.layers):
        p = torch.softmax(matrices.scores, -1).numpy()
        grouped = p.reshape(-1, group, *p.shape[1:]).mean(1)
        for token in range(tokens):
            own = prompt.length + token
            later = range(own + FIRST, min(prompt.length + tokens - 1, own + LAST) + 1)
            if len(later):
                made[token, layer] = grouped[:, list(later), own].mean(1)
    return made


def check(tiny: TinyModel, prompt: EncodedPrompt, steps: list[StepTrace], run: EagerRun, tokens: int = TOKENS) -> None:
    found = steps[-1].influence
    assert found is not None
    assert all(step.influence is None for step in steps[:-1])
    want = expected(tiny, prompt, run, tokens)
    for layer, window in enumerate(tiny.loaded.windows):
        if window is not None and window <= LAST:  # an entry that has left its window is not there to be read
            want[: max(0, tokens - window), layer] = np.nan
    assert np.isfinite(want).any()
    np.testing.assert_allclose(found, want, rtol=1e-3, atol=2e-6)


def test_it_equals_the_mean_of_later_rows_in_every_family(family: TinyModel) -> None:
    prompt = asking(family, 1)
    answer = forced(1)
    steps = Engine(family.loaded).score_encoded([prompt], [answer])[0]
    check(family, prompt, steps, eager_run(family, prompt, answer))


def test_under_a_budget_and_in_a_batch_it_equals_runs_that_do_not_see_what_was_dropped(tiny: TinyModel) -> None:
    """Answers of several lengths, under budgets and without, some of which ask for nothing."""
    lengths, entries = (TOKENS, 33, TOKENS, 12, 60), 20
    budgets = (
        None,
        Budget("random", entries=entries, seed=1),
        Budget("random", entries=entries, seed=2),
        None,
        Budget("snapkv", ratio=0.5),
    )
    prompts = [asking(tiny, seed, budget=budget, max_tokens=n) for seed, (budget, n) in enumerate(zip(budgets, lengths, strict=True))]
    prompts[4] = replace(prompts[4], request=replace(prompts[4].request, influence=False))
    answers = [forced(seed, n) for seed, n in enumerate(lengths)]
    results = Engine(tiny.loaded).score_encoded(prompts, answers)
    for number, prompt in enumerate(prompts[:4]):
        gone = dropped(tiny, prompt, random_choice(tiny, prompt)) if budgets[number] is not None else None
        check(tiny, prompt, results[number], eager_run(tiny, prompt, answers[number], gone), lengths[number])
    assert results[4][-1].influence is None


def test_who_joins_with_a_copy_of_a_prompt_that_was_read_tells_it_too(tiny_llava: TinyModel) -> None:
    """The one that is read asks for nothing, the others of the same prompt do."""
    prompts = [asking(tiny_llava, 5, max_tokens=20) for _ in range(3)]
    prompts = [replace(one, request=replace(one.request, id=f"r{n}", influence=n > 0)) for n, one in enumerate(prompts)]
    answers = [forced(n, 20) for n in range(3)]
    results = Engine(tiny_llava.loaded).score_encoded(prompts, answers)
    assert results[0][-1].influence is None
    for number in (1, 2):
        check(tiny_llava, prompts[number], results[number], eager_run(tiny_llava, prompts[number], answers[number]), 20)


def test_an_answer_that_ends_by_itself_tells_of_its_words(tiny_llava: TinyModel) -> None:
    """The end token is no query: the last row is the one that gave it."""
    prompt = asking(tiny_llava, 2)
    prompt = replace(prompt, request=replace(prompt.request, sampling=SamplingParams(max_tokens=30, temperature=1.0, seed=2)))
    said = [step.token_id for step in Engine(tiny_llava.loaded).generate_encoded([prompt])][:-1]
    end = next(n for n in range(FIRST + 2, 30) if said[n] not in said[:n])
    stopping = TinyModel(replace(tiny_llava.loaded, eos_ids=frozenset({said[end]})), tiny_llava.see, tiny_llava.spans)
    steps = list(Engine(stopping.loaded).generate_encoded([prompt]))
    found = steps[-1].influence
    assert found is not None
    assert len(found) == end + 1
    assert np.isnan(found[end]).all()
    words = [replace(steps[-1], influence=found[:end])]
    check(tiny_llava, prompt, words, eager_run(tiny_llava, prompt, said[:end]), end)


def test_what_re_budgeting_has_moved_is_absent(tiny_llava: TinyModel) -> None:
    prompt = asking(tiny_llava, 3, max_tokens=100, budget=Budget("random", entries=20, seed=3))
    slack = 62  # behind the query number 61 each run goes back to 20 entries, the newest 5 among them
    short, whole = (
        Engine(tiny_llava.loaded, slack=size).score_encoded([prompt], [forced(3, 100)])[0][-1].influence for size in (slack, 256)
    )
    assert short is not None
    assert whole is not None
    done = slack - 1 - LAST  # tokens whose horizon was over by then
    np.testing.assert_allclose(short[:done], whole[:done], rtol=1e-4, atol=1e-7)
    assert np.isfinite(whole[: 100 - FIRST]).all()
    assert np.isnan(short[done : slack - 25]).mean() > 0.7  # of 43 entries at most 15 could stay, and hardly one in its place
    assert np.isfinite(short[slack - 1 : 100 - FIRST]).all()  # who came later


def test_the_next_turn_of_a_conversation_tells_what_a_fresh_run_would() -> None:
    engine = Engine(load_model())
    picture = ImagePart(Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)))
    talk, first = Conversation(engine), Message("user", (picture, TextPart("is there a 7 ?")))
    list(talk.send(Request("one", (first,), SamplingParams(max_tokens=4))))
    messages = (first, Message("assistant", (TextPart("yes"),)), Message("user", (TextPart("describe everything"),)))
    sampling = SamplingParams(max_tokens=24, temperature=8.0, seed=1)
    request = Request("two", messages, sampling, influence=True)
    ours, fresh = list(talk.send(request))[-1].influence, list(engine.generate([request]))[-1].influence
    assert talk.reused > 0
    assert ours is not None
    assert fresh is not None
    assert np.isfinite(ours[: 24 - FIRST]).all()
    np.testing.assert_allclose(ours, fresh, rtol=1e-3, atol=1e-5)
    talk.close()
    assert engine.kv_bytes.allocated == 0


def test_a_column_sum_is_told_only_where_the_entry_is_in_its_place() -> None:
    arena = Arena.empty(torch.tensor([[8, 8]]), 4, torch.float32, received=True)
    kinds, rows = torch.zeros(4, dtype=torch.uint8), torch.zeros(4, 4)
    arena.fill(0, 0, rows, rows, torch.tensor([0, 6, 7, 8]), kinds)
    arena.fill(0, 1, rows[:3], rows[:3], torch.tensor([2, 7, 8]), kinds[:3])
    assert arena.received is not None
    arena.received[:] = torch.arange(16.0)
    newest, lags = (arena.start + arena.length - 1)[None], torch.tensor([1, 2, 6, 8], dtype=torch.int32)
    found = column_sums([arena], newest, torch.full((1, 2), 8, dtype=torch.int32), lags)[0, :, 0]
    np.testing.assert_array_equal(found.numpy(), [[2, 9], [1, np.nan], [np.nan, 8], [0, np.nan]])


def test_asking_without_statistics_is_refused(tiny_llava: TinyModel) -> None:
    prompt = tiny_llava.prompt(0)
    request = replace(prompt.request, influence=True, signals=False)
    with pytest.raises(RequestError, match="beside the head statistics"):
        encoded_from_inputs(tiny_llava.loaded, request, tiny_llava.inputs(0), prompt.segments)
