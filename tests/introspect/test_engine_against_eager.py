"""Tokens, log-probabilities and every statistic of every family against an eager, full-matrix run and against `generate`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from eager_reference import attention_of, check_step, dropped, eager_run, random_choice
from families import TinyModel

from introspect.engine import Engine
from introspect.types import Budget
from introspect_kernels import NUM_SEGMENTS


@pytest.mark.parametrize(("seed", "pictures"), [(0, 1), (3, 2)], ids=["one picture", "two pictures"])
def test_tokens_logprobs_and_statistics_equal_the_eager_run(family: TinyModel, seed: int, pictures: int) -> None:
    prompt = family.prompt(seed, max_tokens=5, pictures=pictures)
    steps = list(Engine(family.loaded).generate_encoded([prompt]))
    run = eager_run(family, prompt, [s.token_id for s in steps if s.token_id >= 0])
    for step in steps:
        check_step(step, prompt, run, family)


@pytest.mark.parametrize(("seed", "entries"), [(2, 12), (4, 21)])
def test_under_a_budget_they_equal_an_eager_run_that_does_not_see_what_was_dropped(family: TinyModel, seed: int, entries: int) -> None:
    prompt = family.prompt(seed, max_tokens=5, pictures=2, budget=Budget("random", entries=entries, seed=seed))
    assert prompt.length > 2 * entries
    steps = list(Engine(family.loaded).generate_encoded([prompt]))
    gone = dropped(family, prompt, random_choice(family, prompt))
    run = eager_run(family, prompt, [s.token_id for s in steps if s.token_id >= 0], gone)
    for step in steps:
        check_step(step, prompt, run, family)
    first = steps[0]
    assert first.heads is not None
    assert (first.heads.retained[list(family.loaded.budgeted)].sum(-1) == entries).all()
    assert first.prompt.budget.effective == first.prompt.budget.nominal == entries


def test_retention_is_the_share_of_the_last_queries_mass_that_survived(family: TinyModel) -> None:
    """The last queries reach into the third picture, whose tokens see each other in some families."""
    length = family.prompt(7, pictures=3).length
    prompt = family.prompt(7, max_tokens=1, pictures=3, budget=Budget("random", entries=length * 5 // 6, seed=7))
    got = next(iter(Engine(family.loaded).generate_encoded([prompt]))).prompt.retention
    run, selection = eager_run(family, prompt, []), random_choice(family, prompt)
    tokens, window, group = length - 1, min(32, length * 5 // 6 // 4), family.loaded.num_heads // family.loaded.num_kv_heads
    one_hot = np.eye(NUM_SEGMENTS)[prompt.segments[:-1]]
    one_hot[0] = 0
    for layer, heads in zip(family.loaded.budgeted, selection, strict=True):
        p = torch.softmax(run.layers[layer].scores[:, tokens - window : tokens, :tokens], -1).sum(1).numpy()
        mass = p.reshape(-1, group, tokens).mean(1)
        for head, kept in enumerate(heads):
            want = (mass[head, kept] @ one_hot[kept]) / np.maximum(mass[head] @ one_hot, 1e-12)
            want[one_hot.sum(0) == 0] = np.nan
            np.testing.assert_allclose(got[layer, head], want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("seed", "pictures"), [(1, 1), (6, 2)], ids=["one picture", "two pictures"])
def test_full_policy_gives_the_tokens_and_logprobs_of_transformers_generate(family: TinyModel, seed: int, pictures: int) -> None:
    prompt = family.prompt(seed, max_tokens=8, pictures=pictures)
    steps = [s for s in Engine(family.loaded).generate_encoded([prompt]) if s.logits is not None]
    given = family.inputs(seed, pictures)
    with attention_of(family.loaded.model, "eager"):
        output = family.loaded.model.generate(
            input_ids=given["input_ids"], attention_mask=torch.ones_like(given["input_ids"]), max_new_tokens=8, do_sample=False,
            pad_token_id=0, output_logits=True, return_dict_in_generate=True, **family.vision_kwargs(given),
        )  # fmt: skip
    assert [s.token_id for s in steps] == output.sequences[0, prompt.length :].tolist()
    for step, logits in zip(steps, output.logits, strict=True):
        assert step.logits is not None
        assert step.logits.logprob == pytest.approx(float(torch.log_softmax(logits[0].float(), -1)[step.token_id]), abs=1e-4)
