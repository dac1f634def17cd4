"""What the tests of decode attention in Triton's interpreter and on a GPU share: cases, and a comparison with fp64."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import torch

from introspect_kernels import NUM_SEGMENTS, Arena, HeadStats, decode_attention

INDICES = ("argmax_position", "image_argmax_position", "retained")
FLOOR = 4e-6


@dataclass(frozen=True)
class Case:
    """Lengths per sequence and KV head, and what else gives a call its shape."""

    lengths: list[list[int]]
    group: int
    head_dim: int
    dtype: torch.dtype = torch.float32
    factor: float = 1.0
    alternating: bool = False


# One after another: what could break.
CASES = {
    "nothing-and-one-entry": Case([[0, 1], [2, 0]], 1, 32),
    "around-a-tile": Case([[31, 32, 33]], 2, 32),
    "around-a-chunk-and-a-hundred-times-longer": Case([[257, 3], [256, 255]], 2, 80),
    "group-of-4": Case([[40, 70]], 4, 96),
    "group-of-7": Case([[64, 5]], 7, 128),
    "group-of-8": Case([[9], [40]], 8, 64),
    "group-of-16": Case([[37]], 16, 48),
    "largest-head": Case([[50]], 2, 256),
    "segments-alternate-and-recur": Case([[300, 31]], 2, 32, alternating=True),
    "more-pieces-than-are-merged-at-a-time": Case([[1500]], 1, 32, alternating=True),
    "all-scores-equal": Case([[290, 11]], 2, 32, factor=0.0),
    "one-dominates": Case([[60, 11]], 2, 32, factor=30.0),
    "scores-in-the-thousands": Case([[60, 11]], 2, 32, factor=1000.0),
    "bf16": Case([[40, 5]], 4, 64, torch.bfloat16),
    "fp16": Case([[40, 5]], 4, 80, torch.float16),
    "chunks-of-512": Case([[4097]], 1, 32),
    "chunks-of-1024": Case([[8193, 40]], 1, 32),
}


def arena_of(case: Case, seed: int = 1, *, received: bool = False) -> Arena:
    """Random entries at ascending positions; whatever no run owns is NaN, and a segment and position that would be noticed."""
    rng = np.random.default_rng(seed)
    arena = Arena.empty(torch.tensor(case.lengths) + 3, case.head_dim, case.dtype, received=received)
    arena.k[:], arena.v[:], arena.position[:], arena.segment[:] = torch.nan, torch.nan, 5, 2
    for row, heads in enumerate(case.lengths):
        for head, count in enumerate(heads):
            position = np.sort(rng.choice(2 * count + 8, size=count, replace=False))
            segment = np.arange(count) % NUM_SEGMENTS if case.alternating else np.sort(rng.integers(0, NUM_SEGMENTS, count))
            k, v = rng.standard_normal((2, count, case.head_dim)).astype(np.float32)
            arena.fill(row, head, *(torch.from_numpy(x) for x in (k * case.factor, v, position, segment)))
    return arena


def query_of(case: Case, arena: Arena, seed: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """A query at each sequence's newest position, and that position."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(len(case.lengths), case.group * len(case.lengths[0]), case.head_dim, generator=generator).to(case.dtype)
    runs = zip(arena.start.tolist(), arena.length.tolist(), strict=True)
    newest = [max(int(arena.position[s : s + n].max()) if n else 0 for s, n in zip(*row, strict=True)) for row in runs]
    return q, torch.tensor(newest, dtype=torch.int32)


def moved(arena: Arena, device: str, dtype: torch.dtype | None = None) -> Arena:
    """The arena on another device, or with keys and values in another dtype."""
    tensors = {f.name: getattr(arena, f.name) for f in fields(arena)}
    arena = replace(arena, **{name: None if t is None else t.to(device) for name, t in tensors.items()})
    return replace(arena, k=arena.k.to(dtype), v=arena.v.to(dtype)) if dtype is not None else arena


def assert_equals_fp64(case: Case, device: str, impl: str = "triton") -> HeadStats:
    """Output and statistics against fp64, within twice what a plain low-precision run errs.

    That run computes in fp32 and rounds probabilities to the case's dtype for the product with V, as every kernel must.
    """
    arena, scale = arena_of(case), case.head_dim**-0.5
    q, position = query_of(case, arena)
    exact_out, exact = decode_attention(q.double(), moved(arena, "cpu", torch.float64), position, scale, impl="reference")
    rough = decode_attention(q.float(), moved(arena, "cpu", torch.float32), position, scale, impl="reference")[1]
    out, stats = decode_attention(q.to(device), moved(arena, device), position.to(device), scale, impl=impl)
    assert stats is not None
    assert exact is not None
    assert rough is not None
    assert out.dtype == case.dtype
    low = _low_precision_output(q, arena, scale)
    error, budget = (out.cpu().double() - exact_out).abs().max(), (low - exact_out).abs().max()
    assert error <= 2 * budget + FLOOR, f"output: {error} over {budget}"
    for name in HeadStats._fields:
        _assert_field(name, *(getattr(s, name).cpu().double() for s in (stats, exact, rough)))
    return stats


def _low_precision_output(q: torch.Tensor, arena: Arena, scale: float) -> torch.Tensor:
    k, v, _, _, valid = arena.gather()
    batch, _, head_dim = q.shape
    scores = q.float().view(batch, arena.num_kv_heads, -1, head_dim) @ k.float().transpose(-1, -2) * scale
    p = torch.softmax(scores.masked_fill(~valid[:, :, None], -torch.inf), -1).nan_to_num(0.0).to(q.dtype)
    values = torch.where(valid[..., None], v.float(), 0.0)
    return (p.float() @ values).to(q.dtype).double().view(q.shape)


def _assert_field(name: str, ours: torch.Tensor, exact: torch.Tensor, rough: torch.Tensor) -> None:
    assert torch.equal(ours.isnan(), exact.isnan()), name
    assert torch.equal(ours.isinf(), exact.isinf()), name
    known = exact.isfinite()
    if name in INDICES or not known.any():
        assert torch.equal(ours[known], exact[known]), name
        return
    budget = 2 * (rough - exact)[known].abs().max().item()
    magnitude = max(1.0, exact[known].abs().max().item())
    error = (ours - exact)[known].abs().max().item()
    assert error <= budget + FLOOR * magnitude, f"{name}: {error} over {budget}"
