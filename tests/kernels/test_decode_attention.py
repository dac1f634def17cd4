"""The vectorised path against the public reference in fp64, on ragged lengths and extreme scores.

The error budget of each statistic is twice what an independent low-precision
run (the reference in fp32) errs against fp64, plus a floor of a few units in
the last place.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from introspect_kernels import NUM_SEGMENTS, Arena, HeadStats, KernelInputError, Segment, UnknownImplementationError, decode_attention
from introspect_kernels.decode import cpu_threads, vectorised

INDICES = ("argmax_position", "image_argmax_position", "retained")
FLOOR = 4e-6


def ragged_arena(
    lengths: list[list[int]],
    head_dim: int,
    seed: int,
    *,
    scale: float = 1.0,
    slack: int = 3,
    dtype: torch.dtype = torch.float32,
    alternating: bool = False,
) -> Arena:
    """An arena with the given lengths, random entries, ascending positions and segments in runs; unused slots are NaN."""
    rng = np.random.default_rng(seed)
    arena = Arena.empty(torch.tensor(lengths) + slack, head_dim, dtype)
    arena.k.fill_(torch.nan)
    arena.v.fill_(torch.nan)
    for row, heads in enumerate(lengths):
        for head, count in enumerate(heads):
            position = np.sort(rng.choice(4 * count + 8, size=count, replace=False))
            segment = np.arange(count) % NUM_SEGMENTS if alternating else np.sort(rng.integers(0, NUM_SEGMENTS, count))
            k, v = rng.standard_normal((2, count, head_dim)).astype(np.float32)
            arena.fill(row, head, torch.from_numpy(k * scale), torch.from_numpy(v), torch.from_numpy(position), torch.from_numpy(segment))
    return arena


def query(arena: Arena, num_heads: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A query whose position is one past the largest in its sequence's first run."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(arena.start.shape[0], num_heads, arena.k.shape[1], generator=generator).to(arena.k.dtype)
    last = [max(int(arena.position[s : s + n].max()) if n else 0 for s, n in zip(a, b, strict=True)) for a, b in rows(arena)]
    return q, torch.tensor(last)


def rows(arena: Arena) -> list[tuple[list[int], list[int]]]:
    """Starts and lengths of each sequence's runs."""
    return list(zip(arena.start.tolist(), arena.length.tolist(), strict=True))


def in_dtype(arena: Arena, dtype: torch.dtype) -> Arena:
    """The same arena in another dtype."""
    return replace(arena, k=arena.k.to(dtype), v=arena.v.to(dtype))


def assert_close(arena: Arena, q: torch.Tensor, position: torch.Tensor) -> HeadStats:
    """Compare with fp64 under the derived budget; returns the statistics."""
    scale = q.shape[-1] ** -0.5
    exact_out, exact = decode_attention(q.double(), in_dtype(arena, torch.float64), position, scale, impl="reference")
    low_out = decode_attention(q, arena, position, scale, impl="reference")[0]
    low = decode_attention(q.float(), in_dtype(arena, torch.float32), position, scale, impl="reference")[1]
    out, stats = decode_attention(q, arena, position, scale)
    alone, none = decode_attention(q, arena, position, scale, stats=False)
    assert none is None
    assert stats is not None
    assert exact is not None
    assert low is not None
    budget = 2 * (low_out - exact_out).abs().max() + FLOOR
    assert out.dtype == alone.dtype == q.dtype
    assert (out - exact_out).abs().max() <= budget
    assert (alone - exact_out).abs().max() <= budget
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


# Each is another way through the CPU path: a run is cut into chunks of 1,024 entries, rows are taken four and heads two at a time.
BRANCHES = {
    "one-chunk-in-two-lengths": ([[12, 5], [90, 0], [12, 30]], 3, 32),
    "several-chunks": ([[1100], [1100], [1100]], 7, 64),
    "at-the-edges-of-a-chunk": ([[1024, 1023], [2048, 1025]], 2, 64),
    "one-run-alone": ([[1300]], 5, 64),
    "long-and-short-and-empty": ([[2000, 20], [0, 1100], [3, 18]], 2, 64),
    "wide-heads": ([[260, 270], [255, 256]], 1, 256),
    "many-heads-in-a-group": ([[8200], [8200]], 16, 16),
    "chunks-that-grow": ([[66000]], 2, 8),
}


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


@pytest.mark.parametrize(("threads", "dtype"), [(1, torch.float32), (2, torch.float32), (2, torch.bfloat16)], ids=["1", "2", "2-bf16"])
@pytest.mark.parametrize("name", BRANCHES)
def test_not_a_bit_depends_on_batch_order_or_neighbours(name: str, threads: int, dtype: torch.dtype) -> None:
    lengths, group, head_dim = BRANCHES[name]
    arena = ragged_arena(lengths, head_dim, seed=8, dtype=dtype)
    q, position = query(arena, group * len(lengths[0]), seed=9)
    orders = [[row] for row in range(len(lengths))] + [list(range(len(lengths)))[::-1]]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for with_stats in (True, False):
            out, stats = decode_attention(q, arena, position, 0.2, stats=with_stats)
            for order in orders:
                part_out, part = decode_attention(q[order], arena.select(torch.tensor(order)), position[order], 0.2, stats=with_stats)
                assert torch.equal(part_out, out[order])
                for field in HeadStats._fields if with_stats else ():
                    torch.testing.assert_close(getattr(part, field), getattr(stats, field)[order], rtol=0, atol=0, equal_nan=True)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("ours", [True, False], ids=["torch's-threads", "our-own"])
def test_not_a_bit_depends_on_whose_threads_compute(ours: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    arena = ragged_arena([[4100, 30], [2100, 9]], 32, seed=27)
    q, position = query(arena, 8, seed=28)
    if not ours:
        monkeypatch.setattr(cpu_threads, "_openmp", lambda: None)
    before = torch.get_num_threads()
    results = []
    try:
        for threads, worth in ((1, vectorised.WORTH_THREADS), (2, 1), (5, 1)):
            torch.set_num_threads(threads)
            monkeypatch.setattr(vectorised, "WORTH_THREADS", worth)
            results.append(decode_attention(q, arena, position, 0.2))
    finally:
        torch.set_num_threads(before)
    assert_close(arena, q, position)
    (out, stats), *others = results
    for other_out, other in others:
        assert torch.equal(out, other_out)
        for field in HeadStats._fields:
            torch.testing.assert_close(getattr(other, field), getattr(stats, field), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
def test_statistics_do_not_change_a_bit_of_the_output(dtype: torch.dtype) -> None:
    arena = ragged_arena([[1100, 30], [7, 2100]], 64, seed=29, dtype=dtype)
    q, position = query(arena, 6, seed=30)
    assert torch.equal(decode_attention(q, arena, position, 0.2)[0], decode_attention(q, arena, position, 0.2, stats=False)[0])


@pytest.mark.parametrize("where", [0, 5, 1050])
def test_nan_in_a_key_is_not_hidden(where: int) -> None:
    arena = ragged_arena([[1100]], 64, seed=31)
    arena.k[where, 3] = torch.nan
    out, stats = decode_attention(*query(arena, 2, seed=32)[:1], arena, torch.tensor([5000]), 0.2)
    assert out.isnan().all()
    for name in ("lse", "entropy", "sum_sq", "max_prob", "mean_distance"):
        assert getattr(stats, name).isnan().all(), name


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


def test_what_a_broken_run_says_is_of_its_own_entries() -> None:
    arena = ragged_arena([[40, 40]], 16, seed=42, slack=0)
    arena.k[:40], arena.segment[:40], arena.position[40:] = torch.nan, int(Segment.QUESTION), 7777
    stats = decode_attention(torch.ones(1, 2, 16), arena, torch.tensor([9999]), 0.3)[1]
    assert stats is not None
    assert stats.argmax_position[0, 0] in arena.position[:40]


def test_what_was_returned_is_not_written_to_again() -> None:
    arena, other = (ragged_arena([[1100, 30]], 64, seed=seed) for seed in (21, 22))
    q, position = query(arena, 4, seed=23)
    out, stats = decode_attention(q, arena, position, 0.2)
    assert stats is not None
    copies = [value.clone() for value in (out, *stats)]
    with torch.inference_mode():
        decode_attention(q, other, position, 0.2)
    decode_attention(q, other, position, 0.2)
    for value, copy in zip((out, *stats), copies, strict=True):
        torch.testing.assert_close(value, copy, rtol=0, atol=0, equal_nan=True)


def test_compiled_as_one_graph() -> None:
    arena = ragged_arena([[1100, 30], [0, 64]], 64, seed=24)
    q, position = query(arena, 4, seed=25)
    compiled = torch.compile(decode_attention, fullgraph=True, backend="aot_eager")
    for with_stats in (True, False):
        out, stats = decode_attention(q, arena, position, 0.2, stats=with_stats)
        other_out, other = compiled(q, arena, position, 0.2, stats=with_stats)
        assert torch.equal(out, other_out)
        assert (stats is None) == (other is None)
        for ours, theirs in zip(stats or (), other or (), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


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
