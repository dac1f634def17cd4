"""The public reference: one head at a time, in the definitions' own words, any float dtype."""

from __future__ import annotations

import torch

from introspect_kernels.arena import Arena
from introspect_kernels.segments import NUM_SEGMENTS, Segment
from introspect_kernels.statistics import WINDOW, HeadStats

_REALS = [f for f in HeadStats._fields if f not in ("argmax_position", "image_argmax_position", "mass", "retained")]


def decode_attention_reference(
    q: torch.Tensor, arena: Arena, position: torch.Tensor, scale: float, stats: bool
) -> tuple[torch.Tensor, HeadStats | None]:
    """See `decode_attention`; computes in fp64 if q is fp64, else in fp32."""
    batch, heads, _ = q.shape
    group = heads // arena.num_kv_heads
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    out = torch.zeros_like(q)
    fields = _empty(batch, heads, arena.num_kv_heads, dtype, q.device)
    for b in range(batch):
        for h in range(heads):
            first, count = int(arena.start[b, h // group]), int(arena.length[b, h // group])
            run = slice(first, first + count)
            segment, where = arena.segment[run], arena.position[run].to(dtype)
            fields["retained"][b, h // group] = torch.bincount(segment.long(), minlength=NUM_SEGMENTS)
            if count == 0:
                fields["lse"][b, h] = -torch.inf
                continue
            scores = arena.k[run].to(dtype) @ q[b, h].to(dtype) * scale
            values = arena.v[run].to(dtype)
            out[b, h] = (torch.softmax(scores, 0) @ values).to(q.dtype)
            if stats:
                for name, value in _head(scores, values, segment, where, int(position[b])).items():
                    fields[name][b, h] = value
    return out, HeadStats(**fields) if stats else None


def _head(
    scores: torch.Tensor, values: torch.Tensor, segment: torch.Tensor, where: torch.Tensor, query: int
) -> dict[str, torch.Tensor | float]:
    p = torch.softmax(scores, 0)
    distance = query - where
    result: dict[str, torch.Tensor | float] = {
        "lse": torch.logsumexp(scores, 0),
        "entropy": torch.special.entr(p).sum(),
        "sum_sq": (p * p).sum(),
        "max_prob": p.max(),
        "argmax_position": where[p.argmax()],
        "mass": torch.stack([p[segment == s].sum() for s in range(NUM_SEGMENTS)]),
        "mean_distance": (p * distance).sum(),
        "windowed_distance": (p * distance.clamp(max=WINDOW)).sum(),
    }
    for name, offset in (("self_mass", 0), ("previous_mass", 1)):
        here = where == query - offset
        if here.any():
            result[name] = p[here].sum()
    image = segment == Segment.IMAGE
    if image.any():
        inside = torch.softmax(scores[image], 0)
        result |= {
            "image_entropy": torch.special.entr(inside).sum(),
            "image_max": inside.max(),
            "image_argmax_position": where[image][inside.argmax()],
            "image_output_share": (p[image] @ values[image]).norm() / (p @ values).norm(),
        }
    return result


def _empty(batch: int, heads: int, kv_heads: int, dtype: torch.dtype, device: torch.device) -> dict[str, torch.Tensor]:
    fields = {name: torch.full((batch, heads), torch.nan, dtype=dtype, device=device) for name in _REALS}
    fields["mass"] = torch.full((batch, heads, NUM_SEGMENTS), torch.nan, dtype=dtype, device=device)
    for name in ("argmax_position", "image_argmax_position"):
        fields[name] = torch.full((batch, heads), -1, dtype=torch.int32, device=device)
    fields["retained"] = torch.zeros(batch, kv_heads, NUM_SEGMENTS, dtype=torch.int32, device=device)
    return fields
