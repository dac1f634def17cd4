"""Arenas of ragged runs for the CPU path, ways through it, and a comparison with the reference in fp64.

The error budget of each statistic is twice what an independent low-precision run (the reference in fp32) errs against fp64, plus a
floor of a few units in the last place.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from introspect_kernels import NUM_SEGMENTS, Arena, HeadStats, decode_attention

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
