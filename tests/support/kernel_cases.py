"""Cases and comparisons that the tests of the attention operators share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from introspect_kernels import NUM_SEGMENTS, Arena

FLOOR = 4e-6
"""A few units in the last place of fp32; nothing is asked to be closer."""


@dataclass
class Prefill:
    """Random queries, keys, values and segments of one layer's prompt; every sequence's padding is NaN."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    segment: torch.Tensor
    rows: torch.Tensor
    first: torch.Tensor
    scale: float

    def to(self, dtype: torch.dtype | None = None, device: str | None = None) -> Prefill:
        """The same case in another dtype or on another device."""
        q, k, v = (t.to(dtype=dtype, device=device) for t in (self.q, self.k, self.v))
        return Prefill(q, k, v, self.segment.to(device), self.rows.to(device), self.first.to(device), self.scale)


def prefill(
    lengths: list[int],
    kv_heads: int,
    group: int,
    head_dim: int,
    rows: torch.Tensor | None = None,
    *,
    window: int = 5,
    padding: str = "right",
    factor: float = 1.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Prefill:
    """A batch padded to its longest sequence; the last `window` rows of each, or those given as token indices."""
    generator = torch.Generator().manual_seed(seed)
    tokens = max(lengths)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, head_dim, generator=generator)

    length = torch.tensor(lengths)
    first = (tokens - length if padding == "left" else torch.zeros_like(length)).int()
    if rows is None:
        offset = length[:, None] - window + torch.arange(window)
        rows = torch.where(offset >= 0, offset, -1)
    at = torch.where(rows >= 0, rows + first[:, None], -1).int()
    q = draw(len(lengths), kv_heads * group, rows.shape[1]) * factor
    k, v = draw(len(lengths), kv_heads, tokens), draw(len(lengths), kv_heads, tokens)
    segment = torch.randint(0, NUM_SEGMENTS, (len(lengths), tokens), generator=generator, dtype=torch.uint8)
    index = torch.arange(tokens)
    padded = (index < first[:, None]) | (index >= (first + length)[:, None])
    q = q.masked_fill((rows < 0)[:, None, :, None], torch.nan)
    k, v = (t.masked_fill(padded[:, None, :, None], torch.nan) for t in (k, v))
    return Prefill(q, k, v, segment, at, first, head_dim**-0.5).to(dtype)


def ragged_arena(lengths: list[list[int]], head_dim: int, seed: int, *, slack: int = 3, dtype: torch.dtype = torch.float32) -> Arena:
    """Runs of the given lengths with ascending, gappy positions; slots in no use are NaN."""
    generator = torch.Generator().manual_seed(seed)
    arena = Arena.empty(torch.tensor(lengths) + slack, head_dim, dtype, received=True)
    arena.k.fill_(torch.nan)
    arena.v.fill_(torch.nan)
    for row, heads in enumerate(lengths):
        for head, count in enumerate(heads):
            position = torch.randperm(2 * count + 4, generator=generator)[:count].sort().values
            k, v = torch.randn(2, count, head_dim, generator=generator)
            arena.fill(row, head, k, v, position, torch.randint(0, NUM_SEGMENTS, (count,), generator=generator))
    if arena.received is not None and arena.queries is not None:
        arena.received.copy_(torch.rand(len(arena.received), generator=generator))
        arena.queries.copy_(torch.randint(0, 9, (len(arena.queries),), generator=generator))
    return arena


def assert_within_budget(ours: torch.Tensor, exact: torch.Tensor, rough: torch.Tensor, name: str = "") -> None:
    """Error against fp64 at most twice that of an independent low-precision reference, plus the floor; NaN where it is NaN."""
    ours, exact, rough = (t.detach().double().cpu() for t in (ours, exact, rough))
    assert ours.shape == exact.shape, name
    assert torch.equal(ours.isnan(), exact.isnan()), name
    assert torch.equal(ours.isinf(), exact.isinf()), name
    known = exact.isfinite()
    if not known.any():
        return
    budget = 2 * (rough - exact)[known].abs().max().item() + FLOOR * max(1.0, exact[known].abs().max().item())
    error = (ours - exact)[known].abs().max().item()
    assert error <= budget, f"{name}: {error} over {budget}"


@contextmanager
def poisoned() -> Iterator[None]:
    """Uninitialised memory is NaN (the largest integer), so that what an operator forgets to write is seen."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(before)
