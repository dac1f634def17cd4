"""What else computes this attention: torch's own kernel in two forms, and attention that builds its weights."""

from __future__ import annotations

import torch

from introspect_kernels.bench.problems import Inputs
from introspect_kernels.segments import NUM_SEGMENTS, Segment
from introspect_kernels.statistics import WINDOW


def sdpa_folded(inputs: Inputs) -> torch.Tensor:
    """SDPA with the query heads of a KV head as rows of one matrix, the strong form; `[batch, num_heads, head_dim]`."""
    batch, heads, head_dim = inputs.q.shape
    rows = inputs.q.view(batch, inputs.k.shape[1], -1, head_dim)
    out = torch.nn.functional.scaled_dot_product_attention(rows, inputs.k, inputs.v, scale=inputs.scale)
    return out.view(batch, heads, head_dim)


def sdpa_gqa(inputs: Inputs) -> torch.Tensor:
    """SDPA with `enable_gqa`, as most code calls it."""
    return torch.nn.functional.scaled_dot_product_attention(inputs.q[:, :, None], inputs.k, inputs.v, scale=inputs.scale, enable_gqa=True)[
        :, :, 0
    ]


def eager(inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention that returns its weights, with the steps that transformers' eager attention takes.

    Returns:
        The output `[batch, num_heads, head_dim]` and the weights `[batch, num_heads, entries]`.
    """
    group = inputs.q.shape[1] // inputs.k.shape[1]
    k, v = (t.repeat_interleave(group, 1) if group > 1 else t for t in (inputs.k, inputs.v))
    scores = (inputs.q[:, :, None] @ k.transpose(2, 3)) * inputs.scale
    weights = torch.softmax(scores, -1, dtype=torch.float32).to(inputs.q.dtype)
    return (weights @ v)[:, :, 0], weights[:, :, 0]


def eager_statistics(inputs: Inputs) -> dict[str, torch.Tensor]:
    """Eager attention, and from its weights every field of `HeadStats` that weights can give.

    They cannot give `lse`, nor `image_output_share` without the values; those two are left out.
    """
    _, weights = eager(inputs)
    p = weights.float()
    arena, (batch, heads, entries) = inputs.arena, p.shape
    where = arena.position.view(batch, -1, entries)[:, :1]
    segment = arena.segment.view(batch, -1, entries)[:, 0]
    one_hot = torch.nn.functional.one_hot(segment.long(), NUM_SEGMENTS).float()
    distance = (inputs.position[:, None, None] - where).float()
    inside = p * (segment == int(Segment.IMAGE))[:, None]
    image = inside / inside.sum(-1, keepdim=True)
    max_prob, best = p.max(-1)
    image_max, image_best = image.max(-1)
    where = where.expand(-1, heads, -1)
    return {
        "entropy": torch.special.entr(p).sum(-1),
        "sum_sq": p.square().sum(-1),
        "max_prob": max_prob,
        "argmax_position": where.gather(-1, best[..., None])[..., 0],
        "mass": p @ one_hot,
        "image_entropy": torch.special.entr(image).sum(-1),
        "image_max": image_max,
        "image_argmax_position": where.gather(-1, image_best[..., None])[..., 0],
        "self_mass": (p * (distance == 0)).sum(-1),
        "previous_mass": (p * (distance == 1)).sum(-1),
        "mean_distance": (p * distance).sum(-1),
        "windowed_distance": (p * distance.clamp(max=WINDOW)).sum(-1),
    }
