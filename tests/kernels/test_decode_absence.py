"""What does not exist is not claimed: no entries, no image, nothing before the query, all masked, NaN."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from ragged_arenas import assert_close, query, ragged_arena

from introspect_kernels import Arena, Segment, decode_attention


def test_without_entries_the_output_is_zero_and_nothing_is_claimed() -> None:
    arena = Arena.empty(torch.tensor([[2]]), 8, torch.float32)
    out, stats = decode_attention(torch.ones(1, 2, 8), arena, torch.tensor([0]), 1.0)
    assert stats is not None
    assert torch.equal(out, torch.zeros(1, 2, 8))
    assert stats.lse.isneginf().all()
    assert stats.entropy.isnan().all()
    assert (stats.argmax_position == -1).all()


def test_without_an_image_entry_image_statistics_are_absent() -> None:
    arena = ragged_arena([[6]], 16, seed=5)
    arena.segment[:] = int(Segment.QUESTION)
    q, position = query(arena, 2, seed=6)
    stats = decode_attention(q, arena, position, 0.25)[1]
    assert stats is not None
    for name in ("image_entropy", "image_max", "image_output_share"):
        assert getattr(stats, name).isnan().all(), name
    assert (stats.image_argmax_position == -1).all()
    assert (stats.mass[..., Segment.IMAGE] == 0).all()


def test_an_evicted_previous_entry_is_absent_not_zero() -> None:
    arena = ragged_arena([[4]], 8, seed=7)
    arena.position[:4] = torch.tensor([0, 3, 5, 9])
    stats = decode_attention(torch.ones(1, 1, 8), arena, torch.tensor([9]), 1.0)[1]
    assert stats is not None
    assert stats.previous_mass.isnan().all()
    assert stats.self_mass.item() > 0


@pytest.mark.parametrize("count", [20, 1100], ids=["short", "long"])
def test_entries_masked_with_minus_infinity(count: int) -> None:
    arena = ragged_arena([[count]], 64, seed=19)
    arena.k[:count, 0] = 0.0
    arena.k[3:count:2, 0] = -torch.inf
    q, position = query(arena, 2, seed=20)
    q[..., 0] = 1.0
    assert_close(arena, q, position)


@pytest.mark.parametrize("count", [20, 1100], ids=["short", "long"])
def test_where_every_entry_is_masked_nothing_is_claimed(count: int) -> None:
    arena = ragged_arena([[count]], 64, seed=26)
    arena.k[:count] = -torch.inf
    slots = arena.k.shape[0]
    arena = replace(arena, received=torch.zeros(slots), queries=torch.zeros(slots, dtype=torch.int32))
    out, stats = decode_attention(torch.ones(1, 2, 64), arena, torch.tensor([5000]), 1.0)
    assert stats is not None
    assert out.isnan().all()
    for name in ("lse", "entropy", "max_prob", "mass"):
        assert getattr(stats, name).isnan().all(), name
    assert arena.received is not None
    assert arena.received[:count].isnan().all()


@pytest.mark.parametrize("where", [0, 5, 1050])
def test_nan_in_a_key_is_not_hidden(where: int) -> None:
    arena = ragged_arena([[1100]], 64, seed=31)
    arena.k[where, 3] = torch.nan
    out, stats = decode_attention(*query(arena, 2, seed=32)[:1], arena, torch.tensor([5000]), 0.2)
    assert out.isnan().all()
    for name in ("lse", "entropy", "sum_sq", "max_prob", "mean_distance"):
        assert getattr(stats, name).isnan().all(), name


def test_what_a_broken_run_says_is_of_its_own_entries() -> None:
    arena = ragged_arena([[40, 40]], 16, seed=42, slack=0)
    arena.k[:40], arena.segment[:40], arena.position[40:] = torch.nan, int(Segment.QUESTION), 7777
    stats = decode_attention(torch.ones(1, 2, 16), arena, torch.tensor([9999]), 0.3)[1]
    assert stats is not None
    assert stats.argmax_position[0, 0] in arena.position[:40]
