"""Laws that head statistics obey whatever the scores are."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ragged_arenas import query, ragged_arena

from introspect_kernels import decode_attention


@settings(max_examples=40)
@given(
    lengths=st.lists(st.lists(st.integers(1, 50) | st.integers(1024, 1060), min_size=2, max_size=2), min_size=1, max_size=3),
    seed=st.integers(0, 10_000),
    scale=st.floats(0.0, 8.0),
)
def test_statistics_obey_their_own_laws(lengths: list[list[int]], seed: int, scale: float) -> None:
    arena = ragged_arena(lengths, 64, seed, scale=scale)
    q, position = query(arena, 4, seed + 1)
    stats = decode_attention(q, arena, position, 0.125)[1]
    assert stats is not None
    count = arena.length.repeat_interleave(2, dim=1).float()
    tolerance = 1e-5
    torch.testing.assert_close(stats.mass.sum(-1), torch.ones_like(stats.lse), rtol=0, atol=tolerance)
    assert (stats.entropy >= -tolerance).all()
    assert (stats.entropy <= count.log() + tolerance).all()
    assert (stats.max_prob**2 <= stats.sum_sq + tolerance).all()
    assert (stats.sum_sq <= stats.max_prob + tolerance).all()
    assert (stats.windowed_distance <= stats.mean_distance + 1e-3).all()
    assert (stats.retained.sum(-1) == arena.length).all()
    image = ~stats.image_max.isnan()
    assert (stats.image_max[image] <= 1 + tolerance).all()
