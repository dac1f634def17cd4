"""Which runs of an arena the CPU path computes together.

What a run is computed with (the padded or exact shape, the order of its sums)
depends on that run alone, never on its neighbours: that is what makes results
independent of the batch they came in.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import NamedTuple

import torch

from introspect_kernels.arena import Arena
from introspect_kernels.segments import Segment

LONG = 1 << 16  # numbers in a run's keys: from here on a copy of the run costs more than the operations it saves
MAX_PIECES = 24  # a run that changes its segment more often is cheaper with a table of columns
_GROUPED = 1 << 18  # scores computed together at most: two buffers of them stay in a second-level cache


class Piece(NamedTuple):
    """Entries `[first, last)` of a run that came from one segment."""

    segment: int
    first: int
    last: int


class Group(NamedTuple):
    """Runs computed together.

    Attributes:
        runs: indices into the flattened `[batch * num_kv_heads]`. One that is gathered alone is listed twice: MKL
            sums one product alone in another order than two or more together.
        entries: exact length of every run where they are long, else the length that all are padded to.
        pieces: the segments of every long run, in order; None where runs are gathered and padded.
        first: slot at which the first long run begins.
        step: slots from one long run to the next.
    """

    runs: list[int]
    entries: int
    pieces: tuple[Piece, ...] | None = None
    first: int = 0
    step: int = 0


def is_everything(group: Group, runs: int) -> bool:
    """Whether the group is all of the arena's runs, in order."""
    return group.runs == list(range(runs))


def padded_length(entries: int) -> int:
    """The next of 16, 24, 32, 48, 64, 96, ...: at most half as much again, and few different ones."""
    power = max(16, 1 << (entries - 1).bit_length())
    return power * 3 // 4 if entries <= power * 3 // 4 and power > 16 else power


def plan(arena: Arena, group: int, *, pieces: bool = True) -> list[Group]:
    """Group the arena's runs that are not empty.

    Args:
        arena: of one layer.
        group: query heads of each KV head.
        pieces: whether the segments matter; if not, every long run counts as one piece.
    """
    starts, lengths = arena.start.flatten().tolist(), arena.length.flatten().tolist()
    head_dim = arena.k.shape[1]
    long = [run for run, n in enumerate(lengths) if n * head_dim >= LONG]
    found = _pieces(arena.segment, long, starts, lengths) if pieces else {run: (Piece(-1, 0, lengths[run]),) for run in long}
    together: dict[tuple[int, tuple[Piece, ...] | None], list[int]] = {}
    for run, n in enumerate(lengths):
        if run in found and len(found[run]) <= MAX_PIECES:
            together.setdefault((n, found[run]), []).append(run)
        elif n > 0:
            together.setdefault((padded_length(n), None), []).append(run)
    groups = []
    for (entries, kind), runs in together.items():
        if kind is None:
            groups.append(Group(runs if len(runs) > 1 else runs * 2, entries))
        else:
            most = max(1, _GROUPED // (group * entries)) if pieces else len(runs)
            groups += _evenly_spaced(runs, starts, most, entries, kind)
    return groups


def _evenly_spaced(runs: list[int], starts: list[int], most: int, entries: int, pieces: tuple[Piece, ...]) -> list[Group]:
    """Long runs of one shape, split so that each group's lie at equal steps and are at most `most`."""
    groups: list[Group] = []
    for run in runs:
        last = groups[-1] if groups else None
        step = starts[run] - starts[last.runs[-1]] if last else 0
        if last and len(last.runs) < most and step > 0 and last.step in (0, step):
            groups[-1] = last._replace(runs=[*last.runs, run], step=step)
        else:
            groups.append(Group([run], entries, pieces, starts[run]))
    return groups


def _pieces(segment: torch.Tensor, runs: list[int], starts: list[int], lengths: list[int]) -> dict[int, tuple[Piece, ...]]:
    """The pieces of some runs, from one look at the slots that they span."""
    if not runs:
        return {}
    lowest = min(starts[run] for run in runs)
    slots = segment[lowest : max(starts[run] + lengths[run] for run in runs)]
    changes = (slots[1:] != slots[:-1]).nonzero()[:, 0] + 1
    values = torch.cat([slots[:1], slots[changes]]).tolist()
    cuts = changes.tolist()
    result = {}
    for run in runs:
        first, last = starts[run] - lowest, starts[run] - lowest + lengths[run]
        begin, end = bisect_right(cuts, first), bisect_left(cuts, last)
        edges = [first, *cuts[begin:end], last]
        result[run] = tuple(Piece(values[begin + i], edges[i] - first, edges[i + 1] - first) for i in range(len(edges) - 1))
    return result


def image_spans(pieces: tuple[Piece, ...]) -> list[Piece]:
    """Pieces with all that is not image joined: segment is `Segment.IMAGE` or -1."""
    spans: list[Piece] = []
    for piece in pieces:
        kind = int(Segment.IMAGE) if piece.segment == Segment.IMAGE else -1
        if spans and spans[-1].segment == kind:
            spans[-1] = Piece(kind, spans[-1].first, piece.last)
        else:
            spans.append(Piece(kind, piece.first, piece.last))
    return spans
