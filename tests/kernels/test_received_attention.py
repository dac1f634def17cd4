"""Received attention against the reference in fp64, and against a full matrix."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import assert_within_budget, poisoned, ragged_arena

from introspect_kernels import Arena, KernelInputError, ReceivedAttention, UnknownImplementationError, received_attention


def in_double(arena: Arena) -> Arena:
    return Arena(arena.k.double(), arena.v.double(), arena.position, arena.segment, arena.start, arena.length, arena.capacity)


def span(arena: Arena, group: int, rows: int, seed: int, factor: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries at ascending token indices, among the entries' and past them."""
    generator = torch.Generator().manual_seed(seed)
    batch, kv_heads = arena.start.shape
    q = torch.randn(batch, kv_heads * group, rows, arena.k.shape[1], generator=generator) * factor
    last = int(arena.position.max()) + 3
    position = torch.stack([torch.randperm(max(last, rows), generator=generator)[:rows].sort().values for _ in range(batch)])
    return q.to(arena.k.dtype), position


def check(arena: Arena, q: torch.Tensor, position: torch.Tensor, **options) -> ReceivedAttention:
    scale = q.shape[-1] ** -0.5
    exact = received_attention(q.double(), in_double(arena), position, scale, impl="reference", **options)
    rough = received_attention(q, arena, position, scale, impl="reference", **options)
    with poisoned():
        ours = received_attention(q, arena, position, scale, **options)
    assert_within_budget(ours.sums, exact.sums, rough.sums)
    return ours


@pytest.mark.parametrize(
    ("lengths", "group", "head_dim", "rows"),
    [
        pytest.param([[5, 5], [5, 5]], 1, 32, 4, id="even"),
        pytest.param([[1, 7], [0, 3]], 3, 80, 6, id="one-entry-and-none"),
        pytest.param([[300, 3]], 1, 96, 33, id="a-hundred-times-longer"),
        pytest.param([[63, 64, 65]], 7, 16, 5, id="tile-edges"),
        pytest.param([[9], [31]], 16, 24, 3, id="wide-group"),
    ],
)
def test_equals_the_reference(lengths: list[list[int]], group: int, head_dim: int, rows: int) -> None:
    arena = ragged_arena(lengths, head_dim, seed=1)
    check(arena, *span(arena, group, rows, seed=2))


@pytest.mark.parametrize("factor", [0.0, 60.0], ids=["all-scores-equal", "one-dominates"])
def test_extreme_scores(factor: float) -> None:
    arena = ragged_arena([[40, 11]], 32, seed=3)
    check(arena, *span(arena, 2, 6, seed=4, factor=factor))


def test_own_query_left_out_and_the_others_counted() -> None:
    k = torch.zeros(1, 1, 4, 8)
    arena = Arena.dense(k, k, torch.zeros(1, 4, dtype=torch.uint8))
    found = received_attention(torch.zeros(1, 1, 3, 8), arena, torch.tensor([[1, 2, 3]]), 1.0)
    # Equal scores: row 1 gives a half to each of two keys, row 2 a third, row 3 a quarter; none to itself.
    torch.testing.assert_close(found.sums[0, 0], torch.tensor([1 / 2 + 1 / 3 + 1 / 4, 1 / 3 + 1 / 4, 1 / 4, 0.0]))
    assert found.queries[0, 0].tolist() == [3, 2, 1, 0]
    assert found.position[0, 0].tolist() == [0, 1, 2, 3]


def test_chosen_heads_in_their_order_with_a_row_absent() -> None:
    arena = ragged_arena([[12, 7]], 16, seed=5)
    q, position = span(arena, 3, 5, seed=6)
    position[0, 0] = -1
    q[:, :, 0] = torch.nan
    whole = check(arena, q, position)
    some = check(arena, q, position, heads=[4, 0, 5])
    assert torch.equal(some.sums, whole.sums[:, [4, 0, 5]])
    assert torch.equal(some.position, whole.position[:, [4, 0, 5]])
    assert some.position[0, 0].tolist()[7:] == [-1] * 5
    assert (some.queries[0, 0, 7:] == 0).all()
    assert (some.sums[0, 0, 7:] == 0).all()
    expected = (position[0, 1:] > whole.position[0, 0][:, None]).sum(-1)
    assert whole.queries[0, 0].tolist() == expected.tolist()


def test_a_given_log_sum_exp_is_used() -> None:
    arena = ragged_arena([[12, 7]], 16, seed=7)
    q, position = span(arena, 1, 5, seed=8)
    position += 100  # every query sees every entry
    keys = arena.gather()[0].nan_to_num()
    raw = torch.einsum("bhrd,bhnd->bhrn", q, keys) * 0.25
    lse = raw.masked_fill(torch.arange(12) >= arena.length[..., None, None], -torch.inf).logsumexp(-1)
    plain = received_attention(q, arena, position, 0.25)
    assert_within_budget(check(arena, q, position, lse=lse).sums, plain.sums, plain.sums)
    torch.testing.assert_close(check(arena, q, position, lse=lse + 1.0).sums, plain.sums / torch.e)
    torch.testing.assert_close(plain.sums.sum(-1), torch.full((1, 2), 5.0))


def test_bitwise_the_same_alone_and_beside_others() -> None:
    arena = ragged_arena([[12, 5], [90, 2], [12, 30]], 32, seed=9)
    q, position = span(arena, 2, 6, seed=10)
    together = received_attention(q, arena, position, 0.2)
    for row in range(3):
        one = torch.tensor([row])
        alone = received_attention(q[one], arena.select(one), position[one], 0.2)
        width = alone.sums.shape[2]
        assert torch.equal(alone.sums[0], together.sums[row, :, :width])
        assert (together.sums[row, :, width:] == 0).all()


@settings(max_examples=25)
@given(
    lengths=st.lists(st.lists(st.integers(1, 30), min_size=2, max_size=2), min_size=1, max_size=3),
    rows=st.integers(1, 8),
    seed=st.integers(0, 9999),
)
def test_sums_stay_within_the_count_of_queries(lengths: list[list[int]], rows: int, seed: int) -> None:
    arena = ragged_arena(lengths, 16, seed)
    q, position = span(arena, 2, rows, seed)
    found = received_attention(q, arena, position, 0.25)
    assert (found.sums >= 0).all()
    assert (found.sums <= found.queries + 1e-5).all()
    assert (found.queries <= rows).all()


def test_in_a_compiled_graph() -> None:
    arena = ragged_arena([[12, 5], [9, 2]], 16, seed=11)
    q, position = span(arena, 2, 4, seed=12)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(q: torch.Tensor, position: torch.Tensor) -> ReceivedAttention:
        return received_attention(q, arena, position, 0.25, heads=[1, 3], most=12)

    for ours, eager in zip(compiled(q, position), received_attention(q, arena, position, 0.25, heads=[1, 3]), strict=True):
        assert torch.equal(ours, eager)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.ones(1, 4, 2, 8)}, r"q must be \[1, num_heads, span, 16\], got \(1, 4, 2, 8\)"),
        ({"q": torch.ones(1, 3, 2, 16)}, "multiple of num_kv_heads 2, got 3"),
        ({"q": torch.ones(1, 4, 2, 16).double()}, "q must be torch.float32 on cpu like the arena, got torch.float64"),
        ({"position": torch.tensor([[1.0, 2.0]])}, r"position must be integers \(1, 2\) on cpu, got torch.float32"),
        ({"lse": torch.ones(1, 4)}, r"lse must be floats \(1, 4, 2\) on cpu, got torch.float32 \(1, 4\)"),
        ({"heads": [0, 4]}, r"heads must lie in 0 to 3, got \[0, 4\]"),
        ({"heads": torch.tensor([0.5])}, "list of query heads, got torch.float32"),
        ({"most": 3}, "at least the longest run, 4, got 3"),
    ],
)
def test_wrong_inputs_are_told_apart(change: dict[str, object], message: str) -> None:
    arena = ragged_arena([[4, 3]], 16, seed=13)
    inputs = {"q": torch.ones(1, 4, 2, 16), "arena": arena, "position": torch.tensor([[1, 2]]), "scale": 1.0}
    with pytest.raises(KernelInputError, match=message):
        received_attention(**(inputs | change))


def test_an_implementation_is_used_or_refused() -> None:
    arena = ragged_arena([[4, 3]], 16, seed=13)
    with pytest.raises(UnknownImplementationError, match="got 'cuda'"):
        received_attention(torch.ones(1, 4, 2, 16), arena, torch.tensor([[1, 2]]), 1.0, impl="cuda")
