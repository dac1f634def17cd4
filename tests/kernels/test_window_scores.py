"""Window scores against the reference in fp64, and against their own laws."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import Prefill, assert_within_budget, poisoned, prefill

from introspect_kernels import KernelInputError, UnknownImplementationError, last_rows, window_scores
from introspect_kernels.window.columns import run_columns


def scores(case: Prefill, **options) -> torch.Tensor:
    return window_scores(case.q, case.k, case.scale, rows=case.rows, first=case.first, **options)


def check(case: Prefill, **options) -> torch.Tensor:
    exact = scores(case.to(torch.float64), impl="reference", **options)
    with poisoned():
        ours = scores(case, **options)
    assert_within_budget(ours, exact, scores(case, impl="reference", **options))
    return ours


@pytest.mark.parametrize("reduce", ["mean", "sum", "max"])
@pytest.mark.parametrize(
    ("lengths", "kv_heads", "group", "head_dim", "padding"),
    [
        pytest.param([9], 2, 1, 32, "right", id="no-group"),
        pytest.param([65, 64, 63, 1], 1, 7, 80, "right", id="tile-edges-and-one-key-padded-right"),
        pytest.param([70, 3, 0], 2, 3, 96, "left", id="shorter-than-the-window-and-none-padded-left"),
        pytest.param([300, 3], 1, 16, 16, "left", id="a-hundred-times-longer-wide-group"),
    ],
)
def test_equals_the_reference(lengths: list[int], kv_heads: int, group: int, head_dim: int, padding: str, reduce: str) -> None:
    check(prefill(lengths, kv_heads, group, head_dim, padding=padding, seed=1), reduce=reduce)


@pytest.mark.parametrize("factor", [0.0, 1e-3, 60.0], ids=["all-scores-equal", "nearly-equal", "one-dominates"])
def test_extreme_scores(factor: float) -> None:
    ours = check(prefill([40], 2, 2, 32, factor=factor, seed=2))
    if factor == 0.0:
        expected = sum(torch.cat([torch.ones(n), torch.zeros(40 - n)]) / n for n in range(36, 41))
        torch.testing.assert_close(ours[0, 0], expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_input_costs_no_more_than_its_own_rounding(dtype: torch.dtype) -> None:
    check(prefill([50, 20], 2, 2, 64, seed=3, dtype=dtype))


def test_a_given_log_sum_exp_is_used() -> None:
    case = prefill([30], 1, 2, 16, seed=4)
    raw = torch.einsum("bhrd,bhnd->bhrn", case.q, case.k.repeat_interleave(2, 1)) * case.scale
    hidden = torch.arange(30) > case.rows[0][:, None]
    lse = raw.masked_fill(hidden, -torch.inf).logsumexp(-1)
    assert_within_budget(check(case, lse=lse), scores(case), scores(case))
    torch.testing.assert_close(check(case, lse=lse + 1.0), scores(case) / torch.e)


def test_keys_taken_in_tiles_give_the_same() -> None:
    case = prefill([700], 1, 2, 16, seed=5)
    index = torch.arange(700, dtype=torch.int32)
    whole = run_columns(case.q[0], case.k[0, 0], index, case.rows[0], None, case.scale)
    tiled = run_columns(case.q[0], case.k[0, 0], index, case.rows[0], None, case.scale, tile_elements=1)
    torch.testing.assert_close(tiled, whole, rtol=1e-5, atol=1e-7)
    assert not torch.equal(whole[:, :-1], whole[:, 1:])


def test_equals_what_prefill_used_to_compute() -> None:
    case = prefill([90], 2, 3, 32, window=8, seed=6)
    grouped = case.q[0].reshape(2, 24, 32) @ case.k[0].transpose(-1, -2) * case.scale
    future = torch.arange(90) > torch.arange(82, 90)[:, None]
    expected = torch.softmax(grouped.view(2, 3, 8, 90).masked_fill(future, -torch.inf), -1).sum(2).mean(1)
    torch.testing.assert_close(window_scores(case.q, case.k, case.scale)[0], expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("impl", ["vectorised", "reference"])
def test_bitwise_the_same_alone_and_beside_others(padding: str, impl: str) -> None:
    together = prefill([33, 7, 90], 2, 2, 32, padding=padding, seed=7)
    all_scores = scores(together, impl=impl)
    for b, length in enumerate([33, 7, 90]):
        own = slice(int(together.first[b]), int(together.first[b]) + length)
        rows = (together.rows[b] - together.first[b])[None]
        alone = window_scores(together.q[b : b + 1], together.k[b : b + 1, :, own].clone(), together.scale, rows=rows, impl=impl)
        assert torch.equal(alone[0], all_scores[b, :, own])
        outside = all_scores[b].clone()
        outside[:, own] = 0
        assert (outside == 0).all()


def test_pooling() -> None:
    case = prefill([6, 4], 1, 1, 8, padding="left", seed=8)
    plain = scores(case)[:, 0].tolist()
    for row, begin in enumerate((0, 2)):
        own = [0.0, *plain[row][begin:], 0.0]
        triples = [own[i : i + 3] for i in range(len(own) - 2)]
        mean, largest = (scores(case, pool=3, pooling=kind)[row, 0] for kind in ("mean", "max"))
        torch.testing.assert_close(mean[begin:], torch.tensor([sum(t) / 3 for t in triples]))
        torch.testing.assert_close(largest[begin:], torch.tensor([max(t) for t in triples]))
        assert (mean[:begin] == 0).all()


@settings(max_examples=30)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=3).filter(any),
    group=st.sampled_from([1, 2, 4]),
    window=st.integers(1, 6),
    padding=st.sampled_from(["left", "right"]),
    seed=st.integers(0, 9999),
    factor=st.floats(0.0, 20.0),
)
def test_columns_add_up_to_the_number_of_queries(
    lengths: list[int], group: int, window: int, padding: str, seed: int, factor: float
) -> None:
    case = prefill(lengths, 2, group, 16, window=window, padding=padding, seed=seed, factor=factor)
    queries = torch.tensor([min(window, n) for n in lengths]).float()[:, None].expand(-1, 2)
    mean, total, largest = (scores(case, reduce=reduce) for reduce in ("mean", "sum", "max"))
    torch.testing.assert_close(mean.sum(-1), queries, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(total, mean * group, rtol=1e-5, atol=1e-6)
    assert (largest <= total + 1e-6).all()
    assert (largest >= mean - 1e-6).all()
    assert (mean >= 0).all()


def test_last_rows() -> None:
    rows, first = last_rows(torch.tensor([5, 2]), 3, 5, "left")
    assert rows.tolist() == [[2, 3, 4], [-1, 3, 4]]
    assert first.tolist() == [0, 3]
    rows, first = last_rows(torch.tensor([5, 2]), 3, 5, "right")
    assert rows.tolist() == [[2, 3, 4], [-1, 0, 1]]
    assert first.tolist() == [0, 0]
    with pytest.raises(KernelInputError, match=r"integers \[batch\], got torch.float32"):
        last_rows(torch.ones(2), 3, 5)


def test_in_a_compiled_graph() -> None:
    case = prefill([20, 9], 2, 2, 16, padding="left", seed=9)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(q: torch.Tensor, k: torch.Tensor, rows: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        return window_scores(q, k, 0.25, rows=rows, first=first, pool=3) * 2

    eager = window_scores(case.q, case.k, 0.25, rows=case.rows, first=case.first, pool=3) * 2
    assert torch.equal(compiled(case.q, case.k, case.rows, case.first), eager)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.ones(1, 4, 2, 8)}, r"got \(1, 4, 2, 8\) and \(1, 2, 5, 16\)"),
        ({"q": torch.ones(1, 3, 2, 16)}, "multiple of num_kv_heads 2, got 3"),
        ({"q": torch.ones(1, 4, 2, 16, dtype=torch.float64)}, "share a float dtype and a device, got torch.float64"),
        ({"q": torch.ones(1, 4, 6, 16), "rows": None}, "at most 5 queries, one for each key, got 6"),
        ({"rows": torch.tensor([[3.0, 4.0]])}, r"rows must be integers \(1, 2\) on cpu, got torch.float32"),
        ({"rows": torch.tensor([[3, 5]])}, r"between the sequence's first key and 4, or be -1, got rows \[5\]"),
        ({"first": torch.tensor([4])}, r"got rows \[3\] and first \[4\]"),
        ({"first": torch.tensor([-1])}, r"first \[-1\]"),
        ({"lse": torch.ones(1, 4)}, r"lse must be floats \(1, 4, 2\) on cpu, got torch.float32 \(1, 4\)"),
        ({"reduce": "median"}, "'mean', 'sum' or 'max', got 'median'"),
        ({"pool": 4}, "odd width .* got 4"),
    ],
)
def test_wrong_inputs_are_told_apart(change: dict[str, object], message: str) -> None:
    inputs = {"q": torch.ones(1, 4, 2, 16), "k": torch.ones(1, 2, 5, 16), "scale": 1.0, "rows": torch.tensor([[3, 4]])}
    with pytest.raises(KernelInputError, match=message):
        window_scores(**(inputs | change))


def test_an_implementation_is_used_or_refused() -> None:
    case = prefill([5], 1, 1, 8)
    with pytest.raises(UnknownImplementationError, match="got 'cuda'"):
        scores(case, impl="cuda")
    with pytest.raises(UnknownImplementationError, match="triton"):
        scores(case, impl="triton")
