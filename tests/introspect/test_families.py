"""What sets families apart: masks, windows, early image features, positions, the pictures' grids."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from families import FAMILIES, TinyModel
from tiny_model import picture

from introspect.engine import Engine
from introspect.prompt import EncodedPrompt
from introspect.types import Budget, StepTrace
from introspect_kernels import Segment

GRIDS = {
    "embedded-untrained": ((12, 12), (12, 12)),
    "qwen2-vl": ((3, 4), (5, 2)),
    "qwen2.5-vl": ((3, 4), (5, 2)),
    "qwen3-vl": ((3, 4), (5, 2)),
    "gemma3": ((4, 4), (4, 4)),
    "mistral3": ((3, 4), (4, 3)),
}
"""Rows and columns of both pictures' tokens; the other families cut pictures into tiles."""


def first_step(tiny: TinyModel, prompt: EncodedPrompt) -> StepTrace:
    return next(iter(Engine(tiny.loaded).generate_encoded([prompt])))


def logprob(step: StepTrace) -> float:
    assert step.logits is not None
    return step.logits.logprob


def test_requests_that_share_a_prefill_do_not_change_each_other(family: TinyModel) -> None:
    prompts = [family.prompt(5, max_tokens=4, pictures=2), family.prompt(8, max_tokens=4, pictures=2, budget=Budget("snapkv", entries=16))]
    together = list(Engine(family.loaded).generate_encoded(prompts))
    for prompt in prompts:
        alone = list(Engine(family.loaded).generate_encoded([prompt]))
        company = [step for step in together if step.prompt.request_id == prompt.request.id]
        assert [s.token_id for s in alone] == [s.token_id for s in company]
        for ours, theirs in zip(alone, company, strict=True):
            if ours.heads is not None and theirs.heads is not None:
                np.testing.assert_allclose(ours.heads.lse, theirs.heads.lse, atol=1e-4)


def test_chunks_of_a_prompt_give_what_the_whole_gives(family: TinyModel) -> None:
    """Masks, positions and early image features are cut with the tokens, and no picture that sees itself is."""
    prompt = family.prompt(9, max_tokens=3, pictures=3, budget=Budget("snapkv", ratio=0.8))
    whole, pieces = (list(Engine(family.loaded, prefill_chunk=chunk).generate_encoded([prompt])) for chunk in (4096, 7))
    np.testing.assert_allclose(pieces[0].prompt.retention, whole[0].prompt.retention, atol=1e-5)
    for ours, theirs in zip(pieces, whole, strict=True):
        assert ours.token_id == theirs.token_id
        if ours.heads is not None and theirs.heads is not None:
            np.testing.assert_allclose(ours.heads.lse, theirs.heads.lse, atol=1e-4)
            np.testing.assert_array_equal(ours.heads.retained, theirs.heads.retained)


def test_grids_are_told_only_where_a_picture_is_one(family: TinyModel) -> None:
    assert family.prompt(0, pictures=2).image_grids == GRIDS.get(family.loaded.name, ())


def test_the_picture_matters(family: TinyModel) -> None:
    """Else nothing of the above would show a picture that never arrives."""
    prompt = family.prompt(0)
    changed = replace(prompt, pixels=prompt.pixels | family.see([picture(99, *family.sizes[0])]))
    assert logprob(first_step(family, prompt)) != pytest.approx(logprob(first_step(family, changed)), abs=1e-3)


@pytest.fixture(scope="module")
def gemma() -> TinyModel:
    torch.manual_seed(0)
    return FAMILIES["gemma3"]()


def test_sliding_layers_are_left_alone_by_every_budget(gemma: TinyModel) -> None:
    prompt = gemma.prompt(3, pictures=2, budget=Budget("snapkv", entries=8))
    for step in Engine(gemma.loaded).generate_encoded([prompt]):
        assert step.heads is not None
        kept = step.heads.retained.sum(-1)
        assert (kept[[0, 2]] == 18).all()
        assert (kept[1] == 8 + step.index).all()
        assert np.isnan(step.prompt.retention[[0, 2]]).all()
        assert not np.isnan(step.prompt.retention[1]).all()


def test_a_window_past_the_picture_has_no_image_statistics(gemma: TinyModel) -> None:
    steps = list(Engine(gemma.loaded).generate_encoded([gemma.prompt(3, max_tokens=8)]))
    last = steps[-2].heads
    assert last is not None
    assert np.isnan(last.image_max[[0, 2]]).all()
    assert (last.image_argmax_position[[0, 2]] == -1).all()
    assert (last.mass[[0, 2], :, Segment.IMAGE] == 0).all()
    assert not np.isnan(last.image_max[1]).any()


def test_image_tokens_see_each_other_where_the_model_says_so(gemma: TinyModel) -> None:
    prompt = gemma.prompt(3)
    causal = TinyModel(replace(gemma.loaded, kinds_input=None), gemma.see, gemma.spans)
    assert logprob(first_step(gemma, prompt)) != pytest.approx(logprob(first_step(causal, prompt)), abs=1e-3)


def test_early_layers_get_their_image_features(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    qwen = FAMILIES["qwen3-vl"]()
    with_them = logprob(first_step(qwen, qwen.prompt(3)))
    monkeypatch.setattr(qwen.loaded.language_model, "_deepstack_process", lambda hidden, *_: hidden)
    assert with_them != pytest.approx(logprob(first_step(qwen, qwen.prompt(3))), abs=1e-3)


@pytest.mark.parametrize("name", ["qwen2-vl", "qwen2.5-vl", "qwen3-vl"])
def test_positions_run_on_from_the_larger_side_of_the_picture(name: str) -> None:
    torch.manual_seed(0)
    prompt = FAMILIES[name]().prompt(0)
    start = 4  # sink, two text tokens, the vision start token
    time, row, column = prompt.positions[:, start : start + 12]
    assert time.tolist() == [start] * 12
    assert (row - start).tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert (column - start).tolist() == [0, 1, 2, 3] * 3
    assert prompt.positions[:, start + 12].tolist() == [start + 4] * 3
    assert prompt.next_position == prompt.length - 12 + 4
