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
from introspect_kernels.decode.cpu_workspace import scratch
from introspect_kernels.segments import NUM_SEGMENTS, Segment
from introspect_kernels.statistics import WINDOW

_BLOCK, _PAIR = 2048, 2  # entries and runs of a half-precision cache turned to fp32 at a time: they stay in the second-level cache
_FAR = -16.0  # nats: an image whose largest score is further below the largest of all is summed by itself
_LOWEST = -1e30  # in place of a score of -inf: its e is 0 all the same, and 0 times it is 0


class _Image(NamedTuple):
    """The image's own sums of a group, see `Sums`."""

    total: torch.Tensor
    times_score: torch.Tensor
    peak: torch.Tensor


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
    images = [span for span in spans if span.segment == Segment.IMAGE]
    where = _entries(arena.position, group)
    keys = _entries(arena.k, group)
    scores = _scores(q, keys)
    largest, index = scores.max(-1)
    largest.masked_fill_(largest <= _LOWEST, torch.nan)  # every entry is masked: nothing is known
    x = scores.sub_(largest[..., None])
    top, entry = _top(x, images)
    e = torch.exp(x, out=scratch("e", x.shape, x.device))
    mass, weighted = _masses(e, pieces), x.mul_(e)
    image = _Image(mass[..., int(Segment.IMAGE)], _sum([_part(weighted, span).sum(-1) for span in images], mass[..., 0]), top.exp())
    total, times_score = mass.sum(-1), weighted.sum(-1)
    distance = query[:, None] - where
    near = _near(e[..., -WINDOW:], distance[:, -WINDOW:])
    mean = torch.mul(e, distance[:, None], out=x).sum(-1)
    far = top < _FAR
    if bool(far.any()):
        image = _far_image(_scores(q, keys), images, far, image)
    return Sums(
        total=torch.stack([total, image.total]),
        times_score=torch.stack([times_score, image.times_score]),
        largest=largest,
        image_peak=image.peak,
        squared=torch.linalg.vector_norm(e, dim=-1).square(),
        mass=mass,
        distance=torch.stack([mean, WINDOW * total - near[..., 2]], -1),
        at=near[..., :2],
        out=_outputs(e, _entries(arena.v, group), spans),
        argmax_position=where.gather(1, index),
        image_argmax_position=where.gather(1, entry),
        retained=_retained(pieces, q.device).expand(len(group.runs), -1),
    )


def _entries(t: torch.Tensor, group: Group) -> torch.Tensor:
    """The group's part of one of the arena's tensors, `[runs, n, ...]`, where it lies."""
    step = t.stride(0)
    shape, strides = (len(group.runs), group.entries, *t.shape[1:]), (group.step * step, *t.stride())
    return t.as_strided(shape, strides, t.storage_offset() + group.first * step)


def _scores(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """`[runs, group, n]`."""
    runs, rows, entries = q.shape[0], q.shape[1], k.shape[1]
    if k.dtype == torch.float32:
        scores = _product(q, k.transpose(1, 2), "scores")
    else:
        scores = scratch("scores", (runs, rows, entries), q.device)
        for run in range(runs):
            for at in range(0, entries, _BLOCK):
                torch.mm(q[run], _float(k[run, at : at + _BLOCK]).T, out=scores[run, :, at : at + _BLOCK])
    return scores.clamp_(min=_LOWEST)


def _weighted(e: torch.Tensor, v: torch.Tensor, first: int, last: int) -> torch.Tensor:
    """Sum e v over entries `[first, last)`, `[runs, group, head_dim]`."""
    if v.dtype == torch.float32:
        return _product(e[..., first:last], v[:, first:last])
    parts = []
    for at in range(first, last, _BLOCK):
        block = slice(at, min(at + _BLOCK, last))
        pairs = [slice(run, run + _PAIR) for run in range(0, v.shape[0], _PAIR)]
        parts.append(torch.cat([_product(e[pair, :, block], _float(v[pair, block])) for pair in pairs]))
    return _sum(parts, parts[0])


def _float(entries: torch.Tensor) -> torch.Tensor:
    return scratch("block", entries.shape, entries.device).copy_(entries)


def _product(a: torch.Tensor, b: torch.Tensor, memory: str | None = None) -> torch.Tensor:
    """One product for each run, in the scratch memory of that name, or in memory of its own.

    With several threads MKL sums one product alone in another order than two or more together. A run that is alone
    is therefore given twice, so that it gets what it would get in company; with two threads that costs little.
    """
    alone = a.shape[0] == 1 and torch.get_num_threads() > 1
    if alone:
        a, b = a.expand(2, -1, -1), b.expand(2, -1, -1)
    out = None if memory is None else scratch(memory, (a.shape[0], a.shape[1], b.shape[2]), a.device)
    product = torch.bmm(a, b, out=out)
    return product[:1] if alone else product


def _outputs(e: torch.Tensor, v: torch.Tensor, spans: list[Piece]) -> torch.Tensor:
    """Sum e v over all entries and over the image's, `[2, runs, group, head_dim]`; the latter is arbitrary without any."""
    parts = [_weighted(e, v, span.first, span.last) for span in spans]
    whole = _sum(parts, parts[0])
    return torch.stack([whole, _sum([part for part, span in zip(parts, spans, strict=True) if span.segment == Segment.IMAGE], whole)])


def _sum(parts: list[torch.Tensor], otherwise: torch.Tensor) -> torch.Tensor:
    """The parts' sum; without any, what is given for that."""
    total = parts[0] if parts else otherwise
    for part in parts[1:]:
        total = total + part
    return total


def _part(t: torch.Tensor, span: Piece) -> torch.Tensor:
    return t[..., span.first : span.last]


def _top(x: torch.Tensor, images: list[Piece]) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest x among image entries and its index, `[runs, group]`; NaN and 0 without any."""
    top, entry = x.new_full(x.shape[:2], torch.nan), torch.zeros(x.shape[:2], dtype=torch.int64, device=x.device)
    for i, span in enumerate(images):
        found = _part(x, span).max(-1)
        values, indices = found.values, found.indices + span.first
        top, entry = (values, indices) if i == 0 else (torch.maximum(values, top), torch.where(values > top, indices, entry))
    return top, entry


def _far_image(scores: torch.Tensor, images: list[Piece], far: torch.Tensor, image: _Image) -> _Image:
    """The image's own sums, relative to its own largest score where that is far below the largest of all."""
    inside = torch.cat([_part(scores, span) for span in images], -1)
    x = inside - inside.amax(-1, keepdim=True)
    e = x.exp()
    return _Image(
        torch.where(far, e.sum(-1), image.total), torch.where(far, (e * x).sum(-1), image.times_score), image.peak.masked_fill(far, 1.0)
    )


def _near(e: torch.Tensor, distance: torch.Tensor) -> torch.Tensor:
    """What the last entries tell: none before them is nearer to the query than `WINDOW`, as positions ascend.

    Args:
        e: `[runs, group, w]`.
        distance: `[runs, w]`, q - s.

    Returns:
        `[runs, group, 3]`: e at s = q and at s = q - 1, NaN where there is no such entry, and sum e (10 - min(q - s, 10)).
    """
    here = distance[..., None] == torch.arange(2, dtype=distance.dtype, device=distance.device)
    columns = torch.cat([here, (WINDOW - distance[..., None]).clamp(min=0)], -1).float()
    sums = torch.bmm(e, columns)
    sums[..., :2].masked_fill_(~here.any(1, keepdim=True), torch.nan)
    return sums


def _masses(e: torch.Tensor, pieces: tuple[Piece, ...]) -> torch.Tensor:
    """Sum e per segment, `[runs, group, 6]`."""
    sums: list[torch.Tensor | None] = [None] * NUM_SEGMENTS
    for piece in pieces:
        part, before = e[..., piece.first : piece.last].sum(-1), sums[piece.segment]
        sums[piece.segment] = part if before is None else before + part
    zero = e.new_zeros(e.shape[:2])
    return torch.stack([zero if s is None else s for s in sums], -1)


def _retained(pieces: tuple[Piece, ...], device: torch.device) -> torch.Tensor:
    """Entries per segment, `int32 [6]`."""
    counts = [0] * NUM_SEGMENTS
    for piece in pieces:
        counts[piece.segment] += piece.last - piece.first
    return torch.tensor(counts, dtype=torch.int32, device=device)
