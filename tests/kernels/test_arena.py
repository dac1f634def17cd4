"""The arena keeps what it is given, where it is told, and says when it is full."""

from __future__ import annotations

import pytest
import torch

from introspect_kernels import Arena, KernelInputError, decode_attention
from introspect_kernels.errors import ArenaFullError


def filled() -> Arena:
    arena = Arena.empty(torch.tensor([[3, 2], [1, 4]]), 2, torch.float32)
    for row in range(2):
        for head in range(2):
            value = torch.full((1, 2), 10.0 * row + head)
            arena.fill(row, head, value, value, torch.tensor([row + head]), torch.tensor([2]))
    return arena


def test_runs_do_not_overlap_and_append_goes_behind_each() -> None:
    arena = filled()
    arena.capacity[1, 0] = 2
    with pytest.raises(KernelInputError):
        Arena.empty(torch.tensor([1.5]), 2, torch.float32)
    assert arena.start.tolist() == [[0, 3], [5, 6]]
    selected = arena.select(torch.tensor([0]))
    k = torch.tensor([[[1.0, 1.0], [2.0, 2.0]]])
    selected.append(k, -k, torch.tensor([7]), torch.tensor([5], dtype=torch.uint8))
    assert selected.length.tolist() == [[2, 2]]
    assert arena.k[1].tolist() == [1.0, 1.0]
    assert arena.v[4].tolist() == [-2.0, -2.0]
    assert arena.position[[1, 4]].tolist() == [7, 7]
    assert arena.segment[[1, 4]].tolist() == [5, 5]
    assert arena.k[5].tolist() == [10.0, 10.0]


def test_a_full_run_refuses() -> None:
    arena = filled()
    entry = torch.zeros(2, 2, 2)
    with pytest.raises(ArenaFullError, match="full"):
        arena.append(entry, entry, torch.tensor([5, 5]), torch.zeros(2, dtype=torch.uint8))
    with pytest.raises(ArenaFullError, match="capacity 2, got 3"):
        arena.fill(0, 1, torch.zeros(3, 2), torch.zeros(3, 2), torch.arange(3), torch.zeros(3))


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(KernelInputError, match=r"expected k and v \(2, 2, 2\)"):
        filled().append(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2), torch.tensor([0]), torch.zeros(1, dtype=torch.uint8))


def test_entries_start_with_nothing_received() -> None:
    arena = Arena.empty(torch.tensor([[3, 2]]), 2, torch.float32, received=True)
    assert arena.received is not None
    assert arena.queries is not None
    arena.received += 5.0
    arena.queries += 5
    arena.fill(0, 1, torch.ones(1, 2), torch.ones(1, 2), torch.tensor([0]), torch.tensor([2]))
    arena.append(torch.ones(1, 2, 2), torch.ones(1, 2, 2), torch.tensor([1]), torch.tensor([5]))
    assert arena.received.tolist() == [0.0, 5.0, 5.0, 0.0, 0.0]
    assert arena.queries.tolist() == [0, 5, 5, 0, 0]
    assert arena.select(torch.tensor([0])).received is arena.received
    assert filled().received is None


def test_without_the_check_of_room_nothing_is_read_on_the_host() -> None:
    arena = filled()
    arena.capacity.zero_()
    arena.select(torch.tensor([0])).append(torch.ones(1, 2, 2), torch.ones(1, 2, 2), torch.tensor([1]), torch.tensor([5]), check_room=False)
    assert arena.position[1] == 1


def test_a_prefill_cache_is_an_arena_without_a_copy() -> None:
    k = torch.arange(2 * 3 * 4 * 2, dtype=torch.float32).view(2, 3, 4, 2)
    segment = torch.tensor([[0, 2, 2, 4], [0, 1, 3, 4]], dtype=torch.uint8)
    arena = Arena.dense(k, -k, segment, torch.tensor([4, 2]))
    assert arena.k.data_ptr() == k.data_ptr()
    assert arena.length.tolist() == [[4] * 3, [2] * 3]
    keys, values, position, segments, valid = arena.gather()
    assert torch.equal(keys, k)
    assert torch.equal(values, -k)
    assert torch.equal(segments[:, 1], segment)
    assert position[1, 2].tolist() == [0, 1, 2, 3]
    assert valid[1, 2].tolist() == [True, True, False, False]
    with pytest.raises(KernelInputError, match=r"segment \[batch, tokens\], got .* \(2, 3\)"):
        Arena.dense(k, k, segment[:, :3])
    with pytest.raises(KernelInputError, match=r"length must be \[2\], got \(3,\)"):
        Arena.dense(k, k, segment, torch.ones(3))


@pytest.mark.parametrize("heads", [1, 2])
def test_a_cache_whose_rows_lie_apart_makes_an_arena(heads: int) -> None:
    wide, segment = (
        torch.randn(1, heads, 7, 24, generator=torch.Generator().manual_seed(33)),
        torch.zeros(1, 1, dtype=torch.uint8).expand(1, 7),
    )
    q, position = torch.ones(1, 4, 16), torch.tensor([6])
    ours, theirs = (Arena.dense(k, k, segment) for k in (wide[..., :16], wide[..., :16].clone()))
    assert torch.equal(decode_attention(q, ours, position, 0.2)[0], decode_attention(q, theirs, position, 0.2)[0])
