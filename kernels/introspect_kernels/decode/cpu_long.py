"""Long runs on a CPU: each where it lies, without a copy of its keys or values.

A run's entries come in a few pieces of one segment each (positions ascend), so
segment masses are sums over slices, and the output is a sum over spans of image
and other entries, which gives the image's part of it at no cost.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from introspect_kernels.arena import Arena
from introspect_kernels.decode.cpu_fields import Sums
from introspect_kernels.decode.cpu_layout import Group, Piece, image_spans
from introspect_kernels.decode.cpu_short import entry_at
from introspect_kernels.decode.cpu_workspace import scratch
from introspect_kernels.segments import NUM_SEGMENTS, Segment
from introspect_kernels.statistics import WINDOW

_BLOCK = 1024  # entries of a half-precision cache turned to fp32 at a time: they stay in the second-level cache
_ROWS = 8  # MKL multiplies 8 rows faster than 5, 6 or 7
_LOWEST = -1e30  # in place of a score of -inf: its e is 0 all the same, and 0 times it is 0


class _Image(NamedTuple):
    """The image's own sums of a group, see `Sums`."""

    entry: torch.Tensor
    total: torch.Tensor
    times_score: torch.Tensor


def long_output(q: torch.Tensor, arena: Arena, group: Group, scale: float) -> torch.Tensor:
    """Output alone, from torch's own kernel, in the cache's dtype; q `[runs, group, head_dim]`, not scaled.

    The query heads of a KV head are rows of one matrix, which is twice as fast as `enable_gqa`.
    """
    k, v = _entries(arena.k, group)[None], _entries(arena.v, group)[None]
    return torch.nn.functional.scaled_dot_product_attention(q[None], k, v, scale=scale)[0]


def long_sums(q: torch.Tensor, arena: Arena, group: Group, query: torch.Tensor) -> Sums:
    """One pass over runs of equal length and pieces.

    Args:
        q: `[runs, group, head_dim]`, fp32, scaled.
        arena: of the layer.
        group: the runs; all have its pieces.
        query: `int [runs]`, the query's token index.
    """
    pieces = group.pieces or ()
    spans = image_spans(pieces)
    where = _entries(arena.position, group).contiguous()
    scores = _scores(q, _entries(arena.k, group))
    best = [scores[..., span.first : span.last].max(-1) for span in spans]
    values, indices = [b.values for b in best], [b.indices + span.first for b, span in zip(best, spans, strict=True)]
    largest, index = _first_largest(values, indices)
    images = [i for i, span in enumerate(spans) if span.segment == Segment.IMAGE]
    image = _image(scores, [spans[i] for i in images], [values[i] for i in images], [indices[i] for i in images])
    x = scores.sub_(largest[..., None])
    e = torch.exp(x, out=scratch("e", *x.shape))
    mass, times_score = _masses(e, pieces), _dot(e, x)
    distance = (query.to(where.dtype)[:, None] - where).float()[:, None]
    total = mass.sum(-1)
    near = torch.mul(e[..., -WINDOW:], (WINDOW - distance[..., -WINDOW:]).clamp(min=0)).sum(-1)
    return Sums(
        total=torch.stack([total, image.total]),
        times_score=torch.stack([times_score, image.times_score]),
        largest=largest,
        squared=torch.linalg.vector_norm(e, dim=-1).square(),
        mass=mass,
        distance=torch.stack([_dot(e, distance), WINDOW * total - near], -1),
        at=entry_at(e, where, query),
        out=_outputs(e, _entries(arena.v, group), spans),
        argmax_position=where.gather(1, index),
        image_argmax_position=where.gather(1, image.entry),
        retained=_retained(pieces, len(group.runs), q.device),
    )


def _entries(t: torch.Tensor, group: Group) -> torch.Tensor:
    """The group's part of one of the arena's tensors, `[runs, n, ...]`, where it lies."""
    step = t.stride(0)
    shape, strides = (len(group.runs), group.entries, *t.shape[1:]), (group.step * step, *t.stride())
    return t.as_strided(shape, strides, t.storage_offset() + group.first * step)


def _scores(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """`[runs, group, n]`."""
    runs, rows, entries = q.shape[0], q.shape[1], k.shape[1]
    if _ROWS // 2 < rows < _ROWS:
        q = torch.nn.functional.pad(q, (0, 0, 0, _ROWS - rows))
    if k.dtype == torch.float32:
        scores = _product(q, k.transpose(1, 2), "scores")
    else:
        scores = scratch("scores", runs, q.shape[1], entries)
        for run in range(runs):
            for at in range(0, entries, _BLOCK):
                torch.mm(q[run], _float(k[run, at : at + _BLOCK]).T, out=scores[run, :, at : at + _BLOCK])
    return scores[:, :rows].clamp_(min=_LOWEST)


def _weighted(e: torch.Tensor, v: torch.Tensor, first: int, last: int) -> torch.Tensor:
    """Sum e v over entries `[first, last)`, `[runs, group, head_dim]`."""
    if v.dtype == torch.float32:
        return _product(e[..., first:last], v[:, first:last])
    blocks = [slice(at, min(at + _BLOCK, last)) for at in range(first, last, _BLOCK)]
    parts = [_product(e[..., block], _float(v[:, block])) for block in blocks]
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)


def _float(entries: torch.Tensor) -> torch.Tensor:
    return scratch("block", *entries.shape).copy_(entries)


def _product(a: torch.Tensor, b: torch.Tensor, memory: str | None = None) -> torch.Tensor:
    """One product for each run, in the scratch memory of that name, or in memory of its own.

    With several threads MKL sums one product alone in another order than two or more together. A run that is alone
    is therefore given twice, so that it gets what it would get in company; with two threads that costs little.
    """
    alone = a.shape[0] == 1 and torch.get_num_threads() > 1
    if alone:
        a, b = a.expand(2, -1, -1), b.expand(2, -1, -1)
    product = torch.bmm(a, b, out=None if memory is None else scratch(memory, a.shape[0], a.shape[1], b.shape[2]))
    return product[:1] if alone else product


def _outputs(e: torch.Tensor, v: torch.Tensor, spans: list[Piece]) -> torch.Tensor:
    """Sum e v over all entries and over the image's, `[2, runs, group, head_dim]`."""
    out = e.new_zeros(2, e.shape[0], e.shape[1], v.shape[2])
    for span in spans:
        out[int(span.segment == Segment.IMAGE)] += _weighted(e, v, span.first, span.last)
    out[0] += out[1]
    return out


def _first_largest(values: list[torch.Tensor], indices: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest of several spans' largest scores, and the first index that has it."""
    if len(values) == 1:
        return values[0], indices[0]
    largest, which = torch.stack(values).max(0, keepdim=True)
    return largest[0], torch.stack(indices).gather(0, which)[0]


def _image(scores: torch.Tensor, spans: list[Piece], values: list[torch.Tensor], indices: list[torch.Tensor]) -> _Image:
    if not spans:
        nan = scores.new_full(scores.shape[:2], torch.nan)
        return _Image(torch.zeros(nan.shape, dtype=torch.int64, device=nan.device), nan, nan)
    largest, index = _first_largest(values, indices)
    inside = [scores[..., span.first : span.last] for span in spans]
    entries = sum(span.last - span.first for span in spans)
    x = torch.cat(inside, -1, out=scratch("x", *scores.shape[:2], entries)).sub_(largest[..., None])
    e = torch.exp(x, out=scratch("e", *x.shape))
    return _Image(index, e.sum(-1), x.mul_(e).sum(-1))


def _masses(e: torch.Tensor, pieces: tuple[Piece, ...]) -> torch.Tensor:
    """Sum e per segment, `[runs, group, 6]`."""
    sums: list[torch.Tensor | None] = [None] * NUM_SEGMENTS
    for piece in pieces:
        part, before = e[..., piece.first : piece.last].sum(-1), sums[piece.segment]
        sums[piece.segment] = part if before is None else before + part
    zero = e.new_zeros(e.shape[:2])
    return torch.stack([zero if s is None else s for s in sums], -1)


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Sum a b over entries."""
    return torch.mul(a, b, out=scratch("x", *a.shape)).sum(-1)


def _retained(pieces: tuple[Piece, ...], runs: int, device: torch.device) -> torch.Tensor:
    """Entries per segment, `int32 [runs, 6]`."""
    counts = [0] * NUM_SEGMENTS
    for piece in pieces:
        counts[piece.segment] += piece.last - piece.first
    return torch.tensor([counts] * runs, dtype=torch.int32, device=device)
