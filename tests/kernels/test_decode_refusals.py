"""What `decode_attention` refuses before anything runs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from ragged_arenas import query, ragged_arena

from introspect_kernels import NUM_SEGMENTS, KernelInputError, UnknownImplementationError, decode_attention


@pytest.mark.parametrize("name", ["k", "v", "position", "segment", "start", "length", "capacity", "received", "queries"])
def test_an_arena_whose_numbers_lie_apart_is_refused(name: str) -> None:
    arena = ragged_arena([[50, 9]], 16, seed=33)
    slots = arena.k.shape[0]
    arena = replace(arena, received=torch.zeros(slots), queries=torch.zeros(slots, dtype=torch.int32))
    q, position = query(arena, 4, seed=34)
    tensor = getattr(arena, name)
    apart = torch.stack([tensor, tensor], -1)[..., 0]
    with pytest.raises(KernelInputError, match=f"the arena's {name} must be contiguous, got strides"):
        decode_attention(q, replace(arena, **{name: apart}), position, 0.2)


def test_a_segment_that_is_none_is_refused_and_changes_nothing() -> None:
    arena = ragged_arena([[40, 11]], 32, seed=35)
    arena = replace(arena, received=torch.zeros(arena.k.shape[0]), queries=torch.zeros(arena.k.shape[0], dtype=torch.int32))
    arena.segment[7] = NUM_SEGMENTS
    q, position = query(arena, 4, seed=36)
    with pytest.raises(KernelInputError, match="segments must be 0 to 5, got up to 6"):
        decode_attention(q, arena, position, 0.2)
    assert arena.received is not None
    assert not arena.received.any()


def test_wrong_inputs_are_told_apart() -> None:
    arena = ragged_arena([[4, 4]], 16, seed=10)
    position = torch.tensor([9])
    with pytest.raises(KernelInputError, match=r"q must be \[1, num_heads, 16\], got \(1, 4, 8\)"):
        decode_attention(torch.ones(1, 4, 8), arena, position, 1.0)
    with pytest.raises(KernelInputError, match="multiple of num_kv_heads 2, got 3"):
        decode_attention(torch.ones(1, 3, 16), arena, position, 1.0)
    with pytest.raises(KernelInputError, match=r"integers \[1\]"):
        decode_attention(torch.ones(1, 4, 16), arena, torch.tensor([1.0]), 1.0)
    with pytest.raises(UnknownImplementationError, match="got 'flash'"):
        decode_attention(torch.ones(1, 4, 16), arena, position, 1.0, impl="flash")
