"""The path that runs in production without a GPU: plain torch, fp32 arithmetic.

Short runs are gathered, padded and computed many at once (`cpu_short`), long
ones lie where they are (`cpu_long`); `cpu_layout` says which is which.
"""

from __future__ import annotations

import torch

from introspect_kernels.arena import Arena
from introspect_kernels.decode.cpu_fields import Fields, finish, head_stats, nothing, place
from introspect_kernels.decode.cpu_layout import Group, is_everything, plan
from introspect_kernels.decode.cpu_long import long_output, long_sums
from introspect_kernels.decode.cpu_short import gather, short_output, short_sums
from introspect_kernels.statistics import HeadStats


@torch.no_grad()
def decode_attention_vectorised(
    q: torch.Tensor, arena: Arena, position: torch.Tensor, scale: float, stats: bool
) -> tuple[torch.Tensor, HeadStats | None]:
    """See `decode_attention`; computes in fp32, but for long runs without statistics, which are torch's own SDPA."""
    batch, head_dim = q.shape[0], q.shape[2]
    runs = batch * arena.num_kv_heads
    rows = q.reshape(runs, -1, head_dim)
    groups = plan(arena, rows.shape[1], pieces=stats)
    if not stats:
        return _output(rows, arena, groups, scale).view(q.shape), None
    queries, where = rows.float() * scale, position[:, None].expand(-1, arena.num_kv_heads).reshape(-1)
    if len(groups) == 1 and is_everything(groups[0], runs):
        fields = _measure(queries, arena, groups[0], where)
    else:
        fields = nothing(runs, rows.shape[1], head_dim, q.device)
        for group in groups:
            index = torch.tensor(group.runs, device=q.device)
            place(fields, _measure(queries[index], arena, group, where[index]), index)
    return fields.out.view(q.shape).to(q.dtype), head_stats(fields, batch)


def _measure(q: torch.Tensor, arena: Arena, group: Group, where: torch.Tensor) -> Fields:
    if group.pieces is None:
        return finish(short_sums(q, arena, gather(arena, group), where))
    return finish(long_sums(q, arena, group, where))


def _output(rows: torch.Tensor, arena: Arena, groups: list[Group], scale: float) -> torch.Tensor:
    """Output `[runs, group, head_dim]` of queries not scaled, in their dtype."""

    def part(q: torch.Tensor, group: Group) -> torch.Tensor:
        if group.pieces is None:
            return short_output(q.float() * scale, gather(arena, group)).to(q.dtype)
        return long_output(q.to(arena.k.dtype), arena, group, scale).to(q.dtype)

    if len(groups) == 1 and is_everything(groups[0], rows.shape[0]):
        return part(rows, groups[0])
    out = torch.zeros_like(rows)
    for group in groups:
        index = torch.tensor(group.runs, device=rows.device)
        out[index] = part(rows[index], group)
    return out
