"""Short runs on a CPU: many at once, gathered and padded.

At these sizes the number of operations is the cost, so everything that is
linear in the exponentials comes from two matrix products: one with the values,
one with a table of columns (segments, distances).
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch

from introspect_kernels.arena import Arena
from introspect_kernels.decode.cpu_fields import Sums
from introspect_kernels.decode.cpu_layout import Group, is_everything
from introspect_kernels.segments import NUM_SEGMENTS, Segment
from introspect_kernels.statistics import WINDOW

FAINTEST = -1e4  # exp of it is 0, and unlike -inf it may be multiplied by that 0


class Gathered(NamedTuple):
    """Entries of a group's runs, padded by repeating each run's last.

    Attributes:
        slots: `int32 [runs * n]`.
        k: fp32 `[runs, n, head_dim]`.
        v: likewise.
        bias: `[runs, 1, n]`, 0 for an entry and -inf for padding.
        length: `int32 [runs, 1]`.
    """

    slots: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    bias: torch.Tensor
    length: torch.Tensor


def gather(arena: Arena, group: Group) -> Gathered:
    """Copy the group's runs side by side."""
    start, length = arena.start.reshape(-1, 1), arena.length.reshape(-1, 1)
    if not is_everything(group, start.shape[0]):
        index = torch.tensor(group.runs, device=start.device)
        start, length = start[index], length[index]
    steps = torch.arange(group.entries, dtype=torch.int32, device=start.device)
    slots = (torch.minimum(steps, length - 1) + start).view(-1)
    shape = (len(group.runs), group.entries, -1)
    bias = torch.zeros(shape[:2], device=start.device).masked_fill_(steps >= length, -torch.inf)
    k, v = arena.k.index_select(0, slots), arena.v.index_select(0, slots)
    return Gathered(slots, k.float().view(shape), v.float().view(shape), bias[:, None], length)


def short_output(q: torch.Tensor, entries: Gathered) -> torch.Tensor:
    """Output `[runs, group, head_dim]` for q `[runs, group, head_dim]`, scaled."""
    scores = torch.baddbmm(entries.bias, q, entries.k.transpose(1, 2))
    return torch.bmm(torch.softmax(scores, -1), entries.v)


def short_sums(q: torch.Tensor, arena: Arena, entries: Gathered, query: torch.Tensor) -> Sums:
    """One pass over a group.

    Args:
        q: `[runs, group, head_dim]`, fp32, scaled.
        arena: for positions and segments.
        entries: of the group.
        query: `int [runs]`, the query's token index.
    """
    runs, group, _ = q.shape
    where = arena.position.index_select(0, entries.slots).view(runs, -1)
    segment = arena.segment.index_select(0, entries.slots).view(runs, -1)
    scores = torch.baddbmm(entries.bias, q, entries.k.transpose(1, 2))
    largest, best = scores.max(-1, keepdim=True)
    x = (scores - largest).clamp_(min=FAINTEST)
    e = x.exp()
    inside = scores.masked_fill(segment[:, None] != int(Segment.IMAGE), -torch.inf)
    image_largest, image_best = inside.max(-1, keepdim=True)
    image_x = inside.sub_(image_largest).clamp_(min=FAINTEST)
    image_e = image_x.exp()
    valid = (entries.bias == 0).float()
    values = torch.bmm(torch.cat([e, image_e], 1), entries.v)
    rows = torch.cat([e, image_e, e * x, image_e * image_x, e * e, valid], 1)
    table = torch.bmm(rows, _columns(where, segment, query))
    kinds, all_sums = table[..., :NUM_SEGMENTS], table[..., NUM_SEGMENTS]
    sums = all_sums[:, :-1].view(runs, 5, group).movedim(1, 0)
    return Sums(
        largest=largest[..., 0],
        total=sums[:2],
        times_score=sums[2:4],
        image_peak=torch.ones_like(sums[4]),
        squared=sums[4],
        mass=kinds[:, :group],
        distance=table[:, :group, NUM_SEGMENTS + 1 :],
        at=entry_at(e, where, query),
        out=torch.stack([values[:, :group], values[:, group:] * torch.exp(image_largest - largest)]),
        argmax_position=where.gather(1, best[..., 0]),
        image_argmax_position=where.gather(1, image_best[..., 0]),
        retained=kinds[:, -1].to(torch.int32),
    )


@lru_cache
def _kinds(device: torch.device) -> torch.Tensor:
    """One row for each segment: its one-hot vector, and a one."""
    return torch.cat([torch.eye(NUM_SEGMENTS, device=device), torch.ones(NUM_SEGMENTS, 1, device=device)], 1)


def _columns(where: torch.Tensor, segment: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """`[runs, n, 9]`: is the entry of each segment, one, q - s, min(q - s, 10)."""
    kinds = _kinds(where.device)
    distance = (query.to(where.dtype)[:, None] - where).float()
    table = kinds.index_select(0, segment.view(-1).to(torch.int32)).view(*where.shape, -1)
    return torch.cat([table, torch.stack([distance, distance.clamp(max=WINDOW)], -1)], -1)


def entry_at(e: torch.Tensor, where: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """What e `[runs, group, n]` is at s = q and s = q - 1, `[runs, group, 2]`; NaN where no entry has that position.

    Positions ascend, and padding repeats the last, so the first one found is the entry.
    """
    wanted = query.to(where.dtype)[:, None] - torch.arange(2, dtype=where.dtype, device=where.device)
    index = torch.searchsorted(where, wanted).clamp_(max=where.shape[1] - 1)
    missing = where.gather(1, index) != wanted
    found = e.gather(2, index[:, None].expand(-1, e.shape[1], -1))
    return found.masked_fill_(missing[:, None], torch.nan)
