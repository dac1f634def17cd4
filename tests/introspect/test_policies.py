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
from introspect.policies import RECOMMENDED, Prefilled, Selection, added, available_policies, get_policy
from introspect.policies.coverage import Coverage, hilbert_order, laid_out
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


def test_the_recommended_policy_is_one() -> None:
    assert get_policy(RECOMMENDED).needs_budget


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


def on_a_picture(rows: int, columns: int, *, text: int = 20, layers: int = 5, window: int = 4, seed: int = 0) -> Prefilled:
    """Two text entries, a picture, more text."""
    tokens = rows * columns + text
    segments = np.full(tokens, int(Segment.QUESTION), dtype=np.uint8)
    segments[:2], segments[2 : 2 + rows * columns] = Segment.TEMPLATE, Segment.IMAGE
    return replace(prefilled(seed, tokens=tokens, layers=layers, kv_heads=4, window=window), segments=segments, grids=((rows, columns),))


def test_coverage_leaves_no_patch_of_the_picture_empty() -> None:
    given_ = on_a_picture(16, 16)
    selection = get_policy("coverage").select(given_, 5 + 69)  # a quarter beside the five protected
    for kept in (kept for heads in selection[1:] for kept in heads):
        cells = kept[(kept >= 2) & (kept < 258)].numpy() - 2
        # Other layers than the first keep (5 - 2) / 4 of 69 = 51 or 52 of 271, one of every run of at most six along the
        # curve; a patch of 4 x 4 is one stretch of it.
        patches = {(cell // 16 // 4, cell % 16 // 4) for cell in cells.tolist()}
        assert len(patches) == 16
        assert np.bincount([cell // 16 // 4 * 4 + cell % 16 // 4 for cell in cells.tolist()]).max() <= 5
    sizes_ = sizes(selection)
    assert (sizes_[0] == 5 + 2 * 69).all()
    assert abs(sizes_[1:] - (5 + 0.75 * 69)).max() < 1


def test_coverage_thins_text_and_picture_alike_and_each_head_for_itself() -> None:
    given_ = on_a_picture(12, 12, text=60, window=1)
    kept = get_policy("coverage").select(given_, 52)
    share = np.mean([[float(((k >= 2) & (k < 146)).sum()) / (len(k) - 2) for k in heads] for heads in kept])
    assert share == pytest.approx(144 / 202, abs=0.01)
    assert len({tuple(k.tolist()) for heads in kept for k in heads}) == 20
    first = get_policy("coverage").select(given_, 52)
    other = get_policy("coverage").select(replace(given_, seed=1), 52)
    assert all(torch.equal(a, b) for a, b in zip(chain(*kept), chain(*first), strict=True))
    assert not torch.equal(kept[0][0], other[0][0])


def test_coverage_of_several_pictures_and_of_tiles_without_a_grid() -> None:
    base = on_a_picture(4, 4, text=30)
    segments = np.full(46, int(Segment.QUESTION), dtype=np.uint8)
    segments[3:11] = segments[20:28] = Segment.IMAGE
    line = laid_out(replace(base, segments=segments, grids=((2, 4), (4, 2))))
    assert sorted(line.tolist()) == list(range(46))
    assert line[-16:-8].tolist() == [3 + at for at in hilbert_order(2, 4)]
    assert line[-8:].tolist() == [20 + at for at in hilbert_order(4, 2)]
    tiles = laid_out(replace(base, segments=segments, grids=()))
    assert tiles[-16:].tolist() == [*range(3, 11), *range(20, 28)]
    assert laid_out(prefilled(0, tokens=9)).tolist() == list(range(9))  # nobody said what is what


def test_hilberts_curve_is_in_one_piece() -> None:
    order = hilbert_order(8, 8)
    assert sorted(order.tolist()) == list(range(64))
    steps = np.abs(np.diff(order // 8)) + np.abs(np.diff(order % 8))
    assert (steps == 1).all()
    for patch in order.reshape(16, 4):  # every patch of four cells is one stretch
        assert np.ptp(patch // 8) == np.ptp(patch % 8) == 1
    assert sorted(hilbert_order(3, 7).tolist()) == list(range(21))


def test_a_policy_of_ones_own_has_its_own_name_and_goes_away() -> None:
    class Mine(Coverage):
        name = "mine"
        first_layer = 1.0

    with added(Mine):
        assert "mine" in available_policies()
        found = sizes(get_policy("mine").select(on_a_picture(8, 8), 30))
        assert (found == 30).all()
        with pytest.raises(ValueError, match="taken: mine"), added(Mine):
            pass
    assert "mine" not in available_policies()


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
