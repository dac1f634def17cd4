"""Laws that statistics obey whatever the numbers, of the Triton kernels: run by `test_laws_triton.py` in a process of its own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import prefill, ragged_arena

from introspect_kernels import HeadStats, decode_attention, received_attention, row_statistics, window_scores

# The interpreter computes with NumPy, which remarks on a logarithm of zero even where the result is masked away.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

TOLERANCE = 2e-5
FEW = settings(max_examples=6, database=None, derandomize=True, deadline=None)
FACTORS = st.sampled_from([0.0, 1.0, 8.0])


def obeys(stats: HeadStats, count: torch.Tensor) -> None:
    """What holds of every head over `count` entries, shaped as the head's fields are."""
    torch.testing.assert_close(stats.mass.sum(-1), torch.ones_like(stats.lse), rtol=0, atol=TOLERANCE)
    assert (stats.mass >= 0).all()
    assert (stats.entropy >= -TOLERANCE).all()
    assert (stats.entropy <= count.log() + TOLERANCE).all()
    assert (stats.max_prob <= 1 + TOLERANCE).all()
    assert (stats.max_prob >= 1 / count - TOLERANCE).all()
    assert (stats.max_prob**2 <= stats.sum_sq + TOLERANCE).all()
    assert (stats.sum_sq <= stats.max_prob + TOLERANCE).all()
    assert (stats.windowed_distance <= stats.mean_distance + 1e-3).all()
    assert (stats.windowed_distance <= 10 + 1e-3).all()
    image = stats.retained[..., 2].repeat_interleave(2, -1) > 0
    assert torch.equal(image, ~stats.image_max.isnan())
    assert torch.equal(image, ~stats.image_entropy.isnan())
    assert torch.equal(image, stats.image_argmax_position >= 0)
    assert (stats.image_max[image] <= 1 + TOLERANCE).all()
    assert (stats.image_entropy[image] >= -TOLERANCE).all()
    within = (stats.image_max * stats.mass[..., 2])[image]  # renormalised, times the segment's mass: a p like any other
    assert (within <= stats.max_prob[image] + TOLERANCE).all()
    near = stats.self_mass.nan_to_num() + stats.previous_mass.nan_to_num()
    assert ((near >= 0) & (near <= 1 + TOLERANCE)).all()


@FEW
@given(lengths=st.lists(st.integers(1, 40), min_size=2, max_size=2), seed=st.integers(0, 9999), factor=FACTORS)
def test_decode_attention(lengths: list[int], seed: int, factor: float) -> None:
    arena = ragged_arena([lengths], 32, seed)
    before = [arena.received.clone(), arena.queries.clone()]
    q = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(seed)) * factor
    position = arena.position[torch.cat([torch.arange(s, s + n) for s, n in zip(arena.start[0], lengths, strict=True)])].max()[None]
    out, stats = decode_attention(q, arena, position, 0.2, impl="triton")
    assert stats is not None
    count = arena.length.repeat_interleave(2, 1).float()
    obeys(stats, count)
    assert torch.equal(stats.retained.sum(-1), arena.length)
    for head, (start, n) in enumerate(zip(arena.start[0].tolist(), lengths, strict=True)):
        run, pair = slice(start, start + n), slice(2 * head, 2 * head + 2)
        values = arena.v[run]  # an output is a mean of values
        assert (out[0, pair] <= values.max(0).values + 1e-4).all()
        assert (out[0, pair] >= values.min(0).values - 1e-4).all()
        received = (arena.received - before[0])[run].sum()
        torch.testing.assert_close(received, 2 - stats.self_mass[0, pair].nan_to_num().sum(), rtol=1e-4, atol=1e-4)
        assert (arena.queries - before[1])[run].sum() == n - int(arena.position[start + n - 1] == position[0])


@FEW
@given(length=st.integers(1, 40), seed=st.integers(0, 9999), factor=FACTORS)
def test_row_statistics(length: int, seed: int, factor: float) -> None:
    rows = torch.tensor([[length - 1, length // 2, 0]])
    case = prefill([length], 1, 2, 16, rows, seed=seed, factor=factor)
    stats = row_statistics(case.q, case.k, case.v, case.segment, case.scale, rows=case.rows, impl="triton")
    count = (rows + 1)[..., None].float().expand(-1, -1, 2)
    obeys(stats, count)
    assert torch.equal(stats.retained.sum(-1)[0, :, 0], rows[0] + 1)
    assert (stats.image_output_share[~stats.image_max.isnan()] >= 0).all()


@FEW
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=2).filter(any),
    window=st.integers(1, 4),
    padding=st.sampled_from(["left", "right"]),
    seed=st.integers(0, 9999),
    factor=FACTORS,
)
def test_window_scores(lengths: list[int], window: int, padding: str, seed: int, factor: float) -> None:
    case = prefill(lengths, 1, 2, 16, window=window, padding=padding, seed=seed, factor=factor)
    queries = torch.tensor([min(window, n) for n in lengths]).float()[:, None]
    mean, largest = (
        window_scores(case.q, case.k, case.scale, rows=case.rows, first=case.first, reduce=reduce, impl="triton")
        for reduce in ("mean", "max")
    )
    torch.testing.assert_close(mean.sum(-1), queries, rtol=1e-5, atol=1e-5)
    assert (mean >= 0).all()
    assert (largest >= mean - 1e-6).all()
    assert (largest <= 2 * mean + 1e-6).all()


@FEW
@given(lengths=st.lists(st.integers(1, 30), min_size=2, max_size=2), rows=st.integers(1, 5), seed=st.integers(0, 9999))
def test_received_attention(lengths: list[int], rows: int, seed: int) -> None:
    arena = ragged_arena([lengths], 16, seed)
    q = torch.randn(1, 2, rows, 16, generator=torch.Generator().manual_seed(seed))
    position = torch.randperm(80, generator=torch.Generator().manual_seed(seed))[:rows][None]
    found = received_attention(q, arena, position, 0.25, impl="triton")
    assert (found.sums >= 0).all()
    assert (found.sums <= found.queries + TOLERANCE).all()
    assert (found.sums.sum(-1) <= rows + TOLERANCE).all()
