"""The vectorised path against the public reference in fp64, on ragged lengths and extreme scores.

The error budget of each statistic is twice what an independent low-precision
run (the reference in fp32) errs against fp64, plus a floor of a few units in
the last place.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from introspect_kernels import NUM_SEGMENTS, Arena, HeadStats, KernelInputError, Segment, UnknownImplementationError, decode_attention

INDICES = ("argmax_position", "image_argmax_position", "retained")
FLOOR = 4e-6


def ragged_arena(lengths: list[list[int]], head_dim: int, seed: int, *, scale: float = 1.0, slack: int = 3) -> Arena:
    """An arena with the given lengths, random entries, ascending positions and segments in runs."""
    rng = np.random.default_rng(seed)
    arena = Arena.empty(torch.tensor(lengths) + slack, head_dim, torch.float32)
    for row, heads in enumerate(lengths):
        for head, count in enumerate(heads):
            position = np.sort(rng.choice(4 * count + 8, size=count, replace=False))
            segment = np.sort(rng.integers(0, NUM_SEGMENTS, count))
            k, v = rng.standard_normal((2, count, head_dim)).astype(np.float32)
            arena.fill(row, head, torch.from_numpy(k * scale), torch.from_numpy(v), torch.from_numpy(position), torch.from_numpy(segment))
    return arena


def query(arena: Arena, num_heads: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A query whose position is one past the largest in its sequence's first run."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(arena.start.shape[0], num_heads, arena.k.shape[1], generator=generator)
    last = [max(int(arena.position[s : s + n].max()) if n else 0 for s, n in zip(a, b, strict=True)) for a, b in rows(arena)]
    return q, torch.tensor(last)


def rows(arena: Arena) -> list[tuple[list[int], list[int]]]:
    """Starts and lengths of each sequence's runs."""
    return list(zip(arena.start.tolist(), arena.length.tolist(), strict=True))


def in_double(arena: Arena) -> Arena:
    """The same arena in fp64."""
    return Arena(arena.k.double(), arena.v.double(), arena.position, arena.segment, arena.start, arena.length, arena.capacity)


def assert_close(arena: Arena, q: torch.Tensor, position: torch.Tensor) -> HeadStats:
    """Compare with fp64 under the derived budget; returns the statistics."""
    scale = q.shape[-1] ** -0.5
    exact_out, exact = decode_attention(q.double(), in_double(arena), position, scale, impl="reference")
    low_out, low = decode_attention(q, arena, position, scale, impl="reference")
    out, stats = decode_attention(q, arena, position, scale)
    assert stats is not None
    assert exact is not None
    assert low is not None
    assert (out - exact_out).abs().max() <= 2 * (low_out - exact_out).abs().max() + FLOOR
    for name in HeadStats._fields:
        ours, theirs, rough = (getattr(s, name).double() for s in (stats, exact, low))
        assert torch.equal(ours.isnan(), theirs.isnan()), name
        assert torch.equal(ours.isinf(), theirs.isinf()), name
        if name in INDICES:
            assert torch.equal(ours, theirs), name
            continue
        known = theirs.isfinite()
        budget = 2 * (rough - theirs)[known].abs().max().item() if known.any() else 0.0
        magnitude = theirs[known].abs().max().item() if known.any() else 0.0
        error = (ours - theirs)[known].abs().max().item() if known.any() else 0.0
        assert error <= budget + FLOOR * max(1.0, magnitude), f"{name}: {error} over {budget}"
    return stats


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


def test_output_and_statistics_do_not_depend_on_neighbours() -> None:
    arena = ragged_arena([[12, 5], [90, 2], [12, 30]], 32, seed=8)
    q, position = query(arena, 6, seed=9)
    together_out, together = decode_attention(q, arena, position, 0.2)
    assert together is not None
    for row in range(3):
        alone_out, alone = decode_attention(q[row : row + 1], arena.select(torch.tensor([row])), position[row : row + 1], 0.2)
        assert alone is not None
        torch.testing.assert_close(alone_out[0], together_out[row], rtol=0, atol=1e-6)
        for name in HeadStats._fields:
            torch.testing.assert_close(getattr(alone, name)[0], getattr(together, name)[row], rtol=1e-5, atol=1e-6, equal_nan=True)


@settings(max_examples=40)
@given(
    lengths=st.lists(st.lists(st.integers(1, 50), min_size=2, max_size=2), min_size=1, max_size=3),
    seed=st.integers(0, 10_000),
    scale=st.floats(0.0, 8.0),
)
def test_statistics_obey_their_own_laws(lengths: list[list[int]], seed: int, scale: float) -> None:
    arena = ragged_arena(lengths, 16, seed, scale=scale)
    q, position = query(arena, 4, seed + 1)
    stats = decode_attention(q, arena, position, 0.25)[1]
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
