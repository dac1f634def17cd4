"""Policies keep what they promise: the budget to the entry, within bounds, in order, and what they kept before."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch
from families import TinyModel
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from introspect.engine import Engine
from introspect.errors import RequestError
from introspect.policies import Prefilled, Selection, available_policies, get_policy
from introspect.prefill import prefill
from introspect.prompt import EncodedPrompt
from introspect.types import Budget, Request
from introspect_kernels import Segment

EXACT = tuple(name for name in available_policies() if name != "full" and not name.endswith("-paper"))


def prefilled(
    seed: int, *, tokens: int = 161, layers: int = 3, kv_heads: int = 2, window: int = 8, question: int = 12, spread: float = 0.2
) -> Prefilled:
    """A made-up sequence whose window scores are drawn, the more uneven the smaller `spread`."""
    rng = np.random.default_rng(seed)
    scores = [torch.from_numpy(rng.dirichlet(np.full(tokens, spread), kv_heads).astype(np.float32)) for _ in range(layers)]
    keys = [torch.from_numpy(rng.standard_normal((kv_heads, tokens, 4)).astype(np.float32)) for _ in range(layers)]
    heads = rng.dirichlet(np.full(layers * kv_heads, spread)).reshape(layers, kv_heads)
    return Prefilled(tokens, layers, kv_heads, window, scores, seed, keys, max(0, tokens - question), heads)


def sizes(selection: Selection) -> np.ndarray:
    return np.array([[len(kept) for kept in heads] for heads in selection])


@pytest.mark.parametrize(
    ("policy", "seed", "keep", "digest"),
    [
        ("random", 1, 9, "636a5fda8b9e4539"),
        ("random", 2, 40, "3159806679ac765e"),
        ("random", 3, 150, "813be0c12aa76244"),
        ("snapkv", 1, 9, "636a5fda8b9e4539"),
        ("snapkv", 2, 40, "8ac997627310f61f"),
        ("snapkv", 3, 150, "be6a966b633130a9"),
    ],
)
def test_random_and_snapkv_choose_what_they_chose_when_probes_were_fitted_on_them(policy: str, seed: int, keep: int, digest: str) -> None:
    rng = np.random.default_rng(seed)
    scores = [torch.from_numpy(rng.dirichlet(np.full(161, 0.2), 2).astype(np.float32)) for _ in range(3)]
    selection = get_policy(policy).select(Prefilled(161, 3, 2, 8, scores, seed), keep)
    text = ";".join(",".join(map(str, kept.tolist())) for heads in selection for kept in heads)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == digest


@pytest.mark.parametrize("policy", EXACT)
@given(data=st.data(), seed=st.integers(0, 50), tokens=st.integers(3, 70), spread=st.sampled_from([0.02, 0.3, 5.0]))
def test_a_budget_is_kept_to_the_entry_whatever_the_scores(policy: str, data: st.DataObject, seed: int, tokens: int, spread: float) -> None:
    keep = data.draw(st.integers(3, tokens))
    window = data.draw(st.integers(1, max(1, min(32, (keep + 1) // 4))))
    question = data.draw(st.integers(0, tokens - 1))
    given_ = prefilled(seed, tokens=tokens, window=window, question=question, spread=spread)
    selection = get_policy(policy).select(given_, keep)
    assert sizes(selection).sum() == keep * 3 * 2
    for kept in (kept for heads in selection for kept in heads):
        assert kept.dtype == torch.int64
        assert 0 <= int(kept.min()) <= int(kept.max()) < tokens
        assert (kept.diff() > 0).all()
        assert set(range(tokens - window, tokens)) <= set(kept.tolist())
        if policy != "keydiff" or keep > question:  # a question longer than the budget leaves no room even for the sink
            assert int(kept[0]) == 0


def test_sparsemm_gives_what_a_full_head_cannot_use_to_the_others() -> None:
    given_ = prefilled(0, tokens=100, window=5)
    heads = np.array([[0.9, 0.06], [0.04, 0.0], [0.0, 0.0]])
    found = sizes(get_policy("sparsemm").select(Prefilled(**{**given_.__dict__, "head_scores": heads}), 40))
    # Everyone gets 6 + int(0.1 * 34) = 9; the first head takes 91 more and is full; the last 95 go 6 : 4 to the next two.
    assert found.tolist() == [[100, 9 + 57], [9 + 38, 9], [9, 9]]


def test_paper_accounting_leaks_what_water_filling_keeps() -> None:
    given_ = prefilled(0, tokens=100, window=8)
    heads = np.array([[0.9, 0.06], [0.04, 0.0], [0.0, 0.0]])
    leaky = sizes(get_policy("sparsemm-paper").select(Prefilled(**{**given_.__dict__, "head_scores": heads}), 40))
    # C = 40 - 8, floor int(3.2) = 3, the rest (32 - 3) * 6 by score, cut at the prefix of 92; the window on top.
    expected = np.minimum(np.rint(heads * (29 * 6) + 3), 92) + 8
    np.testing.assert_array_equal(leaky, expected)
    assert leaky.mean() < 0.75 * 40


def test_adakv_paper_rounds_each_head_by_itself() -> None:
    given_ = prefilled(4, tokens=100, window=8, spread=0.05)
    found = sizes(get_policy("adakv-paper").select(given_, 41))
    counts = []
    for scores in given_.scores:
        pooled = torch.nn.functional.max_pool1d(scores[:, None, :92], 7, stride=1, padding=3)[:, 0]
        best = pooled.flatten().topk(2 * 33).indices
        counts.append([round(int((best // 92 == head).sum()) * 0.5 + 16) + 8 for head in range(2)])
    np.testing.assert_array_equal(found, counts)
    assert found.sum() != 41 * 6


def test_adakv_takes_the_layers_best_entries_wherever_they_are() -> None:
    tokens, window = 30, 2
    scores = torch.full((2, tokens), 0.001)
    scores[0, 5:20] = 1.0
    given_ = Prefilled(tokens, 1, 2, window, [scores], 0)
    found = get_policy("adakv").select(given_, 10)[0]
    # protected 3, floor 3 + int(0.2 * 7) = 4 for each head; the other 12 are all the first head's
    assert [len(kept) for kept in found] == [16, 4]
    assert set(range(6, 19)) <= set(found[0].tolist())


def test_pyramidkv_gives_lower_layers_more_and_heads_of_a_layer_alike() -> None:
    found = sizes(get_policy("pyramidkv").select(prefilled(1, tokens=120, layers=5, window=4), 30))
    means = found.mean(1)
    assert (np.diff(means) < 0).all()
    assert (np.ptp(found, axis=1) <= 1).all()
    # weights fall from 2 - 1/20 to 1/20 of the mean beside the window and the sink
    assert means[0] - 5 == pytest.approx(25 * 1.95, abs=1)
    assert means[-1] - 5 == pytest.approx(25 * 0.05, abs=1)


def test_streaming_keeps_four_sinks_and_the_latest() -> None:
    kept = get_policy("streaming").select(prefilled(0, tokens=50, window=3), 12)
    assert kept[2][1].tolist() == [0, 1, 2, 3, *range(42, 50)]


def test_keydiff_prefers_the_unusual_key() -> None:
    keys = torch.ones(1, 20, 4)
    keys[0, 7] = torch.tensor([1.0, -1.0, 1.0, -1.0])
    given_ = Prefilled(20, 1, 1, 2, [torch.rand(1, 20)], 0, [keys], 16)
    assert get_policy("keydiff").select(given_, 6)[0][0].tolist() == [0, 7, 16, 17, 18, 19]


def test_keydiff_does_not_look_at_the_question(tiny: TinyModel) -> None:
    def kept(policy: str, prompt: EncodedPrompt) -> list[list[int]]:
        request = replace(prompt.request, budget=Budget(policy, entries=24))
        return [k.tolist() for k in chain(*prefill(tiny.loaded, [replace(prompt, request=request)])[0].kept)]

    prompt, other = tiny.prompt(3), tiny.prompt(3)
    asked = np.flatnonzero(prompt.segments == Segment.QUESTION)
    other.token_ids[asked] = (other.token_ids[asked] + 17) % 100 + 10
    assert kept("keydiff", prompt) == kept("keydiff", other)
    assert kept("snapkv", prompt) != kept("snapkv", other)


@pytest.mark.parametrize("policy", [name for name in EXACT if name != "sparsemm"])
def test_the_engine_reports_the_budget_that_was_kept(tiny: TinyModel, policy: str) -> None:
    steps = list(Engine(tiny.loaded).generate_encoded([tiny.prompt(2, budget=Budget(policy, entries=21))]))
    first = steps[0]
    assert first.heads is not None
    assert first.prompt.budget.nominal == first.prompt.budget.effective == 21
    assert first.heads.retained.sum(-1).mean() == 21


def test_a_policy_may_differ_from_its_neighbours_in_the_batch(tiny_llava: TinyModel) -> None:
    budgets = [Budget("adakv", entries=30), Budget("pyramidkv", entries=30), Budget("keydiff", ratio=0.1), Budget()]
    prompts = [tiny_llava.prompt(seed, budget=budget) for seed, budget in enumerate(budgets)]
    together = {s.prompt.request_id: s for s in Engine(tiny_llava.loaded).generate_encoded(prompts) if s.index == 0}
    for prompt in prompts:
        alone = next(iter(Engine(tiny_llava.loaded).generate_encoded([prompt])))
        assert alone.heads is not None
        np.testing.assert_array_equal(alone.heads.retained, together[prompt.request.id].heads.retained)
        np.testing.assert_allclose(alone.heads.lse, together[prompt.request.id].heads.lse, atol=1e-4)


@pytest.mark.parametrize("policy", ["sparsemm", "sparsemm-paper"])
def test_without_visual_head_scores_the_error_says_how_to_make_them(tiny_llava: TinyModel, policy: str) -> None:
    request = Request.ask("r", "how many red ?", Image.new("RGB", (96, 96)), budget=Budget(policy, entries=20))
    with pytest.raises(RequestError, match="introspect score-heads"):
        list(Engine(tiny_llava.loaded).generate([request]))
