"""The path that runs in production without a GPU: all heads at once, plain torch, fp32.

What costs on a CPU at these sizes is the number of operations, so everything
that is linear in p (segment masses, distances, self and previous mass) comes
from one matrix product with a table of columns.
"""

from __future__ import annotations

import torch

from introspect_kernels.arena import Arena
from introspect_kernels.segments import NUM_SEGMENTS, Segment
from introspect_kernels.statistics import WINDOW, HeadStats


def decode_attention_vectorised(
    q: torch.Tensor, arena: Arena, position: torch.Tensor, scale: float, stats: bool
) -> tuple[torch.Tensor, HeadStats | None]:
    """See `decode_attention`; computes in fp32."""
    batch, heads, head_dim = q.shape
    kv_heads = arena.num_kv_heads
    k, v, where, segment, valid = arena.gather()
    if k.shape[2] == 0:
        return torch.zeros_like(q), _nothing(arena, heads) if stats else None
    grouped = (q.float() * scale).view(batch, kv_heads, heads // kv_heads, head_dim)
    scores = grouped @ k.float().transpose(-1, -2)
    scores = scores.masked_fill(~valid[:, :, None], -torch.inf)
    lse = torch.logsumexp(scores, -1, keepdim=True)
    p = torch.exp(scores - lse).nan_to_num_(0.0)
    values = v.float()
    out = (p @ values).view(batch, heads, head_dim)
    if not stats:
        return out.to(q.dtype), None
    fields = _statistics(scores, lse, p, values, out, where, segment, valid, position)
    return out.to(q.dtype), HeadStats(**{name: value.flatten(1, 2) if name != "retained" else value for name, value in fields.items()})


def _statistics(
    scores: torch.Tensor,
    lse: torch.Tensor,
    p: torch.Tensor,
    values: torch.Tensor,
    out: torch.Tensor,
    where: torch.Tensor,
    segment: torch.Tensor,
    valid: torch.Tensor,
    position: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """Fields `[batch, num_kv_heads, group]` (and `mass [..., 6]`) from scores and p `[..., group, entries]`."""
    one_hot = (segment[..., None] == torch.arange(NUM_SEGMENTS, dtype=torch.uint8, device=segment.device)) & valid[..., None]
    distance = (position.to(where.dtype)[:, None, None] - where).float()
    is_self, is_previous = (distance == 0) & valid, (distance == 1) & valid
    columns = torch.cat(
        [one_hot.float(), torch.stack([distance, distance.clamp(max=WINDOW), is_self.float(), is_previous.float()], -1)], -1
    )
    sums = p @ columns
    max_prob, best = p.max(-1)
    nan = torch.nan
    empty = ~valid.any(-1)[..., None]

    def present(value: torch.Tensor, exists: torch.Tensor) -> torch.Tensor:
        return torch.where(exists, value, nan)

    image = one_hot[..., int(Segment.IMAGE)]
    has_image = image.any(-1)[..., None]
    image_scores = scores.masked_fill(~image[:, :, None], -torch.inf)
    inside = torch.softmax(image_scores, -1)
    image_max, image_best = inside.max(-1)
    image_out = (p * image[:, :, None]) @ values
    whole = out.view(image_out.shape)

    def at(index: torch.Tensor) -> torch.Tensor:
        return where.gather(-1, index)

    return {
        "lse": lse[..., 0],
        "entropy": present(torch.special.entr(p).sum(-1), ~empty),
        "sum_sq": present((p * p).sum(-1), ~empty),
        "max_prob": present(max_prob, ~empty),
        "argmax_position": torch.where(empty, -1, at(best)),
        "mass": present(sums[..., :NUM_SEGMENTS], ~empty[..., None]),
        "image_entropy": present(torch.special.entr(inside).sum(-1), has_image),
        "image_max": present(image_max, has_image),
        "image_argmax_position": torch.where(has_image, at(image_best), -1),
        "image_output_share": present(image_out.norm(dim=-1) / whole.norm(dim=-1), has_image),
        "self_mass": present(sums[..., NUM_SEGMENTS + 2], is_self.any(-1)[..., None]),
        "previous_mass": present(sums[..., NUM_SEGMENTS + 3], is_previous.any(-1)[..., None]),
        "mean_distance": present(sums[..., NUM_SEGMENTS], ~empty),
        "windowed_distance": present(sums[..., NUM_SEGMENTS + 1], ~empty),
        "retained": one_hot.sum(2, dtype=torch.int32),
    }


def _nothing(arena: Arena, heads: int) -> HeadStats:
    batch = arena.start.shape[0]
    nan = torch.full((batch, heads), torch.nan, device=arena.k.device)
    index = torch.full((batch, heads), -1, dtype=torch.int32, device=arena.k.device)
    mass = nan[..., None].expand(batch, heads, NUM_SEGMENTS)
    retained = torch.zeros(batch, arena.num_kv_heads, NUM_SEGMENTS, dtype=torch.int32, device=arena.k.device)
    fields = dict.fromkeys(HeadStats._fields, nan) | {"argmax_position": index, "image_argmax_position": index}
    return HeadStats(**(fields | {"lse": torch.full_like(nan, -torch.inf), "mass": mass, "retained": retained}))
