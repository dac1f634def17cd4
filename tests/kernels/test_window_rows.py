"""Head statistics of chosen prompt rows: each row is a decode step over the keys up to its own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import Prefill, assert_within_budget, poisoned, prefill

from introspect_kernels import Arena, HeadStats, KernelInputError, Segment, decode_attention, row_statistics

INDICES = ("argmax_position", "image_argmax_position", "retained")


def statistics(case: Prefill, impl: str | None = None) -> HeadStats:
    return row_statistics(case.q, case.k, case.v, case.segment, case.scale, rows=case.rows, first=case.first, impl=impl)


def check(case: Prefill) -> HeadStats:
    exact, rough = statistics(case.to(torch.float64), "reference"), statistics(case, "reference")
    with poisoned():
        ours = statistics(case)
    for name in HeadStats._fields:
        if name in INDICES:
            assert torch.equal(getattr(ours, name), getattr(exact, name)), name
        else:
            assert_within_budget(getattr(ours, name), getattr(exact, name), getattr(rough, name), name)
    return ours


@pytest.mark.parametrize(
    ("lengths", "kv_heads", "group", "head_dim", "padding"),
    [
        pytest.param([9], 2, 1, 32, "right", id="no-group"),
        pytest.param([65, 64, 63, 1], 1, 7, 80, "right", id="tile-edges-and-one-key"),
        pytest.param([40, 3, 0], 2, 3, 96, "left", id="shorter-than-the-window-and-none-padded-left"),
        pytest.param([130, 3], 1, 16, 16, "left", id="wide-group"),
    ],
)
def test_equals_the_reference(lengths: list[int], kv_heads: int, group: int, head_dim: int, padding: str) -> None:
    check(prefill(lengths, kv_heads, group, head_dim, padding=padding, seed=1))


def test_any_rows_in_any_order_across_row_tiles() -> None:
    rows = torch.tensor([[*range(40, 0, -1), -1, 0, 39]])
    case = prefill([41], 1, 2, 16, rows, seed=2)
    stats = check(case)
    assert stats.lse[0, 40].isneginf().all()
    assert stats.previous_mass[0, 41].isnan().all()
    assert (stats.self_mass[0, 41] == 1).all()


@pytest.mark.parametrize("factor", [0.0, 60.0], ids=["all-scores-equal", "one-dominates"])
def test_extreme_scores(factor: float) -> None:
    case = prefill([40], 1, 2, 32, factor=factor, seed=3)
    if factor == 0.0:
        case.segment[:] = 4  # which of equal scores is the largest is nobody's to say
        stats = statistics(case)
        torch.testing.assert_close(stats.entropy[0, -1], torch.full((2,), 40.0).log())
        torch.testing.assert_close(stats.mean_distance[0, -1], torch.full((2,), 19.5))
        torch.testing.assert_close(stats.windowed_distance[0, -1], torch.full((2,), (45 + 30 * 10) / 40))
    else:
        check(case)


def test_a_row_before_the_image_claims_nothing_about_it() -> None:
    case = prefill([12], 1, 2, 16, torch.tensor([[2, 9]]), seed=4)
    case.segment[:] = int(Segment.QUESTION)
    case.segment[0, 5:8] = int(Segment.IMAGE)
    stats = check(case)
    assert stats.image_max[0, 0].isnan().all()
    assert stats.image_max[0, 1].isfinite().all()
    assert stats.image_argmax_position[0, 0].tolist() == [-1, -1]
    case.segment[:] = int(Segment.QUESTION)
    assert check(case).image_entropy.isnan().all()


def test_the_last_row_is_a_decode_step() -> None:
    case = prefill([25], 2, 2, 32, seed=5)
    stats = statistics(case)
    arena = Arena.dense(case.k, case.v, case.segment)
    step = decode_attention(case.q[:, :, -1], arena, torch.tensor([24]), case.scale)[1]
    assert step is not None
    for name in HeadStats._fields:
        torch.testing.assert_close(getattr(stats, name)[:, -1], getattr(step, name), rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("padding", ["left", "right"])
def test_bitwise_the_same_alone_and_beside_others(padding: str) -> None:
    together = prefill([33, 7, 90], 2, 2, 32, padding=padding, seed=7)
    whole = statistics(together)
    for b, length in enumerate([33, 7, 90]):
        own = slice(int(together.first[b]), int(together.first[b]) + length)
        k, v, segment = together.k[b : b + 1, :, own].clone(), together.v[b : b + 1, :, own].clone(), together.segment[b : b + 1, own]
        rows = (together.rows[b] - together.first[b])[None]
        rows = torch.where(together.rows[b] >= 0, rows, -1)
        alone = row_statistics(together.q[b : b + 1], k, v, segment, together.scale, rows=rows)
        for name in HeadStats._fields:
            torch.testing.assert_close(getattr(alone, name)[0], getattr(whole, name)[b], rtol=0, atol=0, equal_nan=True)


@settings(max_examples=25)
@given(length=st.integers(1, 40), seed=st.integers(0, 9999), factor=st.floats(0.0, 20.0))
def test_statistics_obey_their_own_laws(length: int, seed: int, factor: float) -> None:
    case = prefill([length], 1, 2, 16, torch.arange(length)[None], seed=seed, factor=factor)
    stats = statistics(case)
    count = torch.arange(1, length + 1)[:, None].float()
    tolerance = 2e-5
    torch.testing.assert_close(stats.mass[0].sum(-1), torch.ones(length, 2), rtol=0, atol=tolerance)
    assert (stats.entropy[0] >= -tolerance).all()
    assert (stats.entropy[0] <= count.log() + tolerance).all()
    assert (stats.max_prob**2 <= stats.sum_sq + tolerance).all()
    assert (stats.sum_sq <= stats.max_prob + tolerance).all()
    assert (stats.windowed_distance <= stats.mean_distance + 1e-3).all()
    assert (stats.retained[0].sum(-1) == count).all()


def test_in_a_compiled_graph() -> None:
    case = prefill([20, 9], 2, 2, 16, padding="left", seed=9)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> HeadStats:
        return row_statistics(q, k, v, case.segment, case.scale, rows=case.rows, first=case.first)

    for ours, eager in zip(compiled(case.q, case.k, case.v), statistics(case), strict=True):
        torch.testing.assert_close(ours, eager, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"v": torch.ones(1, 2, 4, 16)}, r"like k torch.float32 \(1, 2, 5, 16\) on cpu, got torch.float32 \(1, 2, 4, 16\)"),
        ({"segment": torch.zeros(1, 4, dtype=torch.uint8)}, r"uint8 \(1, 5\) on cpu, got torch.uint8 \(1, 4\)"),
        ({"segment": torch.zeros(1, 5)}, "got torch.float32"),
        ({"rows": torch.tensor([[1, 9]])}, r"got rows \[9\]"),
    ],
)
def test_wrong_inputs_are_told_apart(change: dict[str, object], message: str) -> None:
    k = torch.ones(1, 2, 5, 16)
    inputs = {"q": torch.ones(1, 4, 2, 16), "k": k, "v": k, "segment": torch.zeros(1, 5, dtype=torch.uint8), "scale": 1.0}
    with pytest.raises(KernelInputError, match=message):
        row_statistics(**(inputs | change))
