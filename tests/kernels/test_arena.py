"""The arena keeps what it is given, where it is told, and says when it is full."""

from __future__ import annotations

import pytest
import torch

from introspect_kernels import Arena, KernelInputError
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
