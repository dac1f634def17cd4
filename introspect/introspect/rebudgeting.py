"""Long answers under a budget: when the slack is full, each run goes back to the entries that its budget gave it.

Who stays is told by the attention that entries have received while the answer
was made (the idea of H2O, arXiv 2306.14048), as a mean over the queries that
could see them, so that age alone neither helps nor harms. The newest entries, which
hardly any query has seen, and position 0 stay.
"""

from __future__ import annotations

import torch

from introspect.pool import Runs, SlotPool
from introspect_kernels import Arena, rebudget

RECENT = 32
"""Newest entries that always stay, but at most a quarter of a run's budget (as the prefill's window)."""
_RECENT_FIRST, _SINK_FIRST = 1e6, 1e9  # above any mean of received attention, which is at most the heads of a group


@torch.inference_mode()
def rebudget_runs(pool: SlotPool, runs: Runs, slack: int) -> int:
    """Reduce a sequence's runs to their capacity less `slack`; layers with a window of their own move to the front of their slots.

    Args:
        pool: where they lie.
        runs: tracked; their lengths are changed.
        slack: slots of each run for entries to come.

    Returns:
        Entries that every run can take now.
    """
    room = []
    for layer, block in enumerate(runs.blocks):
        if block is None:
            continue
        arena = pool.of(layer, [runs], tracked=True)
        if int(runs.capacity[layer].sum()) < block[1]:  # it has slid
            _move_to_front(arena, block)
            runs.start[layer], runs.capacity[layer] = arena.start[0], arena.capacity[0]
        else:
            index, count = most_received(arena, arena.capacity - slack)
            rebudget(arena, index, count)
            runs.length[layer] = arena.length[0]
        room.append((arena.capacity - arena.length).min())
    return int(torch.stack(room).min())


def most_received(arena: Arena, keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The places in each run of the entries to keep.

    Args:
        arena: with `received`.
        keep: `int [batch, kv_heads]`, entries to keep of each run at most.

    Returns:
        `index int32 [batch, kv_heads, most]`, ascending, and `count int32 [batch, kv_heads]`, as `rebudget` takes them.
    """
    if arena.received is None or arena.queries is None:
        raise ValueError("the arena keeps no received attention")
    longest, device = int(arena.length.max()), arena.k.device
    place = torch.arange(longest, device=device)
    valid = place < arena.length[..., None]
    slots = torch.where(valid, arena.start[..., None] + place, arena.start[..., None]).long()
    count = torch.minimum(keep, arena.length)
    recent = (count // 4).clamp(1, RECENT)
    score = arena.received[slots] / arena.queries[slots].clamp(min=1)
    score = torch.where(place >= (arena.length - recent)[..., None], _RECENT_FIRST + place, score)
    score = torch.where(arena.position[slots] == 0, _SINK_FIRST, score)
    order = score.masked_fill(~valid, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    is_kept = torch.zeros_like(valid).scatter_(-1, order, place < count[..., None])
    index = torch.where(is_kept, place, longest).sort(-1).values[..., : int(count.max())]
    return index.to(torch.int32), count.to(torch.int32)


def _move_to_front(arena: Arena, block: tuple[int, int]) -> None:
    """Entries of runs that have slid, back to the first slots of the block; all heads own alike."""
    heads, longest = arena.num_kv_heads, int(arena.length.max())
    capacity = block[1] // heads
    start = (block[0] + torch.arange(heads, device=arena.k.device) * capacity).to(torch.int32)[None]
    place = torch.arange(longest, device=arena.k.device)
    used = place < arena.length[..., None]
    source, target = ((first[..., None] + place)[used].long() for first in (arena.start, start))
    for column in (arena.k, arena.v, arena.position, arena.segment, arena.received, arena.queries):
        if column is not None:
            column[target] = column[source]
    arena.start, arena.capacity = start, torch.full_like(start, capacity)
