"""The vectorised path against the public reference in fp64, on ragged lengths and extreme scores."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from ragged_arenas import BRANCHES, assert_close, in_dtype, query, ragged_arena

from introspect_kernels import Segment, decode_attention


@pytest.mark.parametrize(
    ("lengths", "group", "head_dim"),
    [
        pytest.param([[5, 5], [5, 5]], 2, 32, id="even-runs-are-views"),
        pytest.param([[1, 7], [0, 3]], 3, 16, id="one-entry-and-none"),
        pytest.param([[300, 3]], 1, 80, id="one-head-a-hundred-times-longer"),
        pytest.param([[63, 64, 65]], 7, 40, id="around-a-tile"),
        pytest.param([[9], [2], [31]], 16, 24, id="wide-groups"),
    ],
)
def test_equals_the_reference_on_ragged_lengths(lengths: list[list[int]], group: int, head_dim: int) -> None:
    arena = ragged_arena(lengths, head_dim, seed=1, slack=0 if lengths[0] == [5, 5] else 3)
    q, position = query(arena, group * len(lengths[0]), seed=2)
    assert_close(arena, q, position)


@pytest.mark.parametrize("factor", [0.0, 1e-3, 30.0], ids=["all-scores-equal", "nearly-equal", "one-dominates"])
def test_extreme_scores(factor: float) -> None:
    arena = ragged_arena([[40, 11]], 32, seed=3, scale=factor)
    q, position = query(arena, 4, seed=4)
    stats = assert_close(arena, q, position)
    if factor == 0.0:
        expected = torch.log(torch.tensor([40.0, 40.0, 11.0, 11.0]))
        torch.testing.assert_close(stats.entropy[0], expected)
        torch.testing.assert_close(stats.lse[0], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", BRANCHES)
def test_every_way_through_the_cpu_path(name: str, dtype: torch.dtype) -> None:
    lengths, group, head_dim = BRANCHES[name]
    arena = ragged_arena(lengths, head_dim, seed=11, dtype=dtype)
    assert_close(arena, *query(arena, group * len(lengths[0]), seed=12))


@pytest.mark.parametrize("alternating", [False, True], ids=["few-pieces", "a-piece-for-each-entry"])
def test_however_segments_lie(alternating: bool) -> None:
    arena = ragged_arena([[1025, 40]], 64, seed=13, alternating=alternating)
    assert_close(arena, *query(arena, 4, seed=14))


def test_an_image_in_two_parts_and_none_at_all() -> None:
    arena = ragged_arena([[1200, 1200]], 64, seed=15, slack=0)
    arena.segment[:] = int(Segment.QUESTION)
    arena.segment[100:400] = arena.segment[700:1000] = int(Segment.IMAGE)
    stats = assert_close(arena, *query(arena, 4, seed=16))
    assert not stats.image_entropy[0, :2].isnan().any()
    assert stats.image_entropy[0, 2:].isnan().all()


@pytest.mark.parametrize("factor", [0.0, 30.0, 1000.0], ids=["all-scores-equal", "one-dominates", "scores-in-the-thousands"])
def test_extreme_scores_of_long_runs(factor: float) -> None:
    arena = ragged_arena([[1030, 1100]], 64, seed=17, scale=factor)
    assert_close(arena, *query(arena, 4, seed=18))


@pytest.mark.parametrize("alternating", [False, True], ids=["few-pieces", "a-piece-for-each-entry"])
def test_every_entry_keeps_what_it_got(alternating: bool) -> None:
    ours = ragged_arena([[1100, 30], [0, 1024]], 16, seed=37, alternating=alternating)
    slots = ours.k.shape[0]
    start = torch.rand(slots, generator=torch.Generator().manual_seed(38))
    ours = replace(ours, received=start.clone(), queries=torch.full((slots,), 5, dtype=torch.int32))
    exact = replace(in_dtype(ours, torch.float64), received=start.clone(), queries=torch.full((slots,), 5, dtype=torch.int32))
    q, position = query(ours, 6, seed=39)
    assert (ours.position[ours.start[0, 0] : 1100] == position[0]).sum() == 1  # the query's own entry, which never counts
    for stats in (True, False):
        decode_attention(q, ours, position, 0.3, stats=stats)
        decode_attention(q.double(), exact, position, 0.3, stats=stats, impl="reference")
    assert ours.queries is not None
    assert torch.equal(ours.queries, exact.queries)
    torch.testing.assert_close(ours.received, exact.received, rtol=1e-5, atol=1e-6)


def test_entries_of_one_position_are_summed() -> None:
    arena = ragged_arena([[1030]], 16, seed=40, slack=0)
    arena.position[:] = torch.arange(1030).clamp(max=1027) + (torch.arange(1030) > 1027)  # twice at s = q, and twice before
    arena.position[1022:1027] = 1027
    arena.segment[1022::2] = int(Segment.IMAGE)
    arena.segment[1023::2] = int(Segment.QUESTION)
    assert_close(arena, query(arena, 2, seed=41)[0], torch.tensor([1028]))


def test_among_equal_scores_the_first_entry_is_named() -> None:
    arena = ragged_arena([[600]], 16, seed=43, slack=0)  # more than are searched at a time
    arena.k.zero_()
    arena.segment[:] = int(Segment.IMAGE)
    stats = assert_close(arena, *query(arena, 2, seed=44))
    assert (stats.argmax_position == arena.position[0]).all()
    assert (stats.image_argmax_position == arena.position[0]).all()


@pytest.mark.parametrize("first", [Segment.IMAGE, Segment.QUESTION])
def test_the_largest_score_may_be_that_of_position_zero(first: Segment) -> None:
    other = Segment.QUESTION if first == Segment.IMAGE else Segment.IMAGE
    arena = ragged_arena([[4]], 16, seed=45, slack=0)
    arena.position[:] = torch.arange(4)
    arena.segment[:] = torch.tensor([first, other, other, other])
    arena.k[0] = 1.0
    arena.k[1:] = -1.0
    stats = assert_close(arena, torch.ones(1, 2, 16), torch.tensor([9]))
    assert (stats.argmax_position == 0).all()
    assert (stats.image_argmax_position == (0 if first == Segment.IMAGE else 1)).all()
