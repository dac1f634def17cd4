"""The paths that run without a GPU: one sequence and KV head at a time, plain torch, fp32.

A sequence is cut to its own keys first, so what it gets does not depend on
what it was padded beside.
"""

from __future__ import annotations

import torch

from introspect_kernels.segments import NUM_SEGMENTS, Segment
from introspect_kernels.statistics import WINDOW
from introspect_kernels.window.columns import run_columns
from introspect_kernels.window.fields import INDICES, REALS, empty_fields

ROW_TILE = 32
"""Rows whose scores are held at once."""


def window_scores_vectorised(
    q: torch.Tensor,
    k: torch.Tensor,
    limit: torch.Tensor,
    first: torch.Tensor,
    lse: torch.Tensor | None,
    scale: float,
    reduce: str,
) -> torch.Tensor:
    """See `window_scores`."""
    batch, heads = q.shape[:2]
    kv_heads, tokens = k.shape[1:3]
    group = heads // kv_heads
    out = torch.zeros(batch, kv_heads, tokens, device=q.device)
    index = torch.arange(tokens, dtype=torch.int32, device=q.device)
    for b in range(batch):
        rows = (limit[b] >= 0).nonzero()[:, 0]
        if not len(rows):
            continue
        begin = int(first[b])
        seen = slice(begin, begin + int(limit[b].max()) + 1)
        for h in range(kv_heads):
            members = slice(h * group, (h + 1) * group)
            norm = None if lse is None else lse[b, members][:, rows]
            keys = k[b, h, seen]
            each = run_columns(q[b, members][:, rows], keys, index[: keys.shape[0]], limit[b, rows], norm, scale)
            out[b, h, seen] = {"mean": each.mean(0), "sum": each.sum(0), "max": each.amax(0)}[reduce]
    return out


def row_statistics_vectorised(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, segment: torch.Tensor, limit: torch.Tensor, first: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `row_statistics`."""
    batch, heads = q.shape[:2]
    kv_heads = k.shape[1]
    group = heads // kv_heads
    reals, indices, mass = empty_fields(q)
    for tensor, nothing in ((reals, torch.nan), (reals[0], -torch.inf), (indices, -1), (mass, torch.nan)):
        tensor.fill_(nothing)
    for b in range(batch):
        present = (limit[b] >= 0).nonzero()[:, 0]
        begin = int(first[b])
        for part in present.split(ROW_TILE) if len(present) else ():
            seen = slice(begin, begin + int(limit[b, part].max()) + 1)
            for h in range(kv_heads):
                members = torch.arange(h * group, (h + 1) * group, device=q.device)
                at = (b, part[:, None], members)
                found = _head(q[b, members][:, part], k[b, h, seen], v[b, h, seen], segment[b, seen], limit[b, part], scale)
                for plane, value in enumerate(found[0]):
                    reals[(plane, *at)] = value.T
                for plane, value in enumerate(found[1]):
                    indices[(plane, *at)] = value.T.to(torch.int32)
                mass[at] = found[2].transpose(0, 1)
    return reals, indices, mass


def _head(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, segment: torch.Tensor, limit: torch.Tensor, scale: float
) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
    """Planes `[members, rows]` and mass `[members, rows, 6]` of one KV head's rows."""
    members, rows, head_dim = q.shape
    index = torch.arange(k.shape[0], dtype=torch.int32, device=q.device)
    scores = ((q.float().reshape(-1, head_dim) * scale) @ k.float().T).view(members, rows, -1)
    scores.masked_fill_(index > limit[:, None], -torch.inf)
    values = v.float()
    p = torch.softmax(scores, -1)
    max_prob, best = p.max(-1)
    # What is linear in p comes from one product. Distances are taken from the tile's last row, so that they stay small and exact.
    last = limit.max()
    one_hot = segment[:, None] == torch.arange(NUM_SEGMENTS, dtype=torch.uint8, device=q.device)
    sums = p @ torch.cat([one_hot.float(), (last - index).float()[:, None]], -1)
    near = p.gather(-1, (limit[:, None] - torch.arange(WINDOW, device=q.device)).clamp(min=0).long().expand(members, -1, -1))
    exists = limit[:, None] >= torch.arange(WINDOW, device=q.device)
    near = near * exists
    lag = torch.arange(WINDOW, dtype=torch.float32, device=q.device)
    image, image_best, has_image = _image(scores, p, values, one_hot[:, int(Segment.IMAGE)], limit)
    planes = {
        "lse": scores.amax(-1) - max_prob.log(),
        "entropy": torch.special.entr(p).sum(-1),
        "sum_sq": torch.linalg.vecdot(p, p),
        "max_prob": max_prob,
        **image,
        "self_mass": near[..., 0],
        "previous_mass": torch.where(exists[:, 1], near[..., 1], torch.nan),
        "mean_distance": sums[..., -1] - (last - limit) * sums[..., :-1].sum(-1),
        "windowed_distance": WINDOW * (sums[..., :-1].sum(-1) - near.sum(-1)) + near @ lag,
    }
    arguments = {"argmax_position": best, "image_argmax_position": torch.where(has_image, image_best, -1)}
    return [planes[name] for name in REALS], [arguments[name] for name in INDICES], sums[..., :-1]


def _image(
    scores: torch.Tensor, p: torch.Tensor, values: torch.Tensor, image: torch.Tensor, limit: torch.Tensor
) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    """Statistics within the image segment, NaN where a row sees none of it; its largest entry; which rows see any."""
    where = image.nonzero()[:, 0]
    nan = torch.full_like(p[..., 0], torch.nan)
    if not len(where):
        absent = dict.fromkeys(("image_entropy", "image_max", "image_output_share"), nan)
        return absent, torch.zeros_like(nan, dtype=torch.int64), torch.zeros_like(nan, dtype=torch.bool)
    has_image = (limit >= where[0]).expand_as(nan)
    inside = torch.softmax(scores[..., where], -1)
    image_max, best = inside.max(-1)
    share = (p[..., where] @ values[where]).norm(dim=-1) / (p @ values).norm(dim=-1)
    found = {"image_entropy": torch.special.entr(inside).sum(-1), "image_max": image_max, "image_output_share": share}
    return {name: torch.where(has_image, value, nan) for name, value in found.items()}, where[best], has_image
