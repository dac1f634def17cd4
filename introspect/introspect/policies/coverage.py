"""Even coverage: of every neighbourhood of the prompt each head keeps its share. The policy that holds longest, and why.

An answer that looks in many places asks for what the prompt's last queries do not
look at. A policy that ranks entries by those queries (SnapKV and all that build on
it) keeps the same favourites in every head, and what the answer needs later is gone
everywhere at once; even a ranking by what the answer *will* look at loses to random
eviction on long descriptions, because it empties the rest. Three things hold instead:

- **Every neighbourhood keeps an entry.** The prompt is laid out on a line along which
  neighbours stay neighbours (text as it stands, each picture along a Hilbert curve),
  cut into as many runs of equal length as there are entries to keep, and one entry is drawn
  from each run: stratified sampling, whose gaps are bounded where random eviction leaves holes.
- **Proportion.** Text and pictures are thinned alike, so that softmax over what is left divides its
  mass between them as it did; to keep all the text instead makes the model look away from the picture.
  Each head draws for itself, so that together they hold more than any of them.
- **The first layer gets twice the mean** (beside what is protected), the others the rest alike. Eviction there
  does most of the damage by far: its attention is broad, and all later layers read what it wrote.
  Quest (Tang et al., arXiv 2406.10774) leaves the first layers whole for that reason, PyramidKV
  (arXiv 2406.02069) gives lower layers more. Visual-head scores say the opposite, which is what starves SparseMM here.

It looks at no scores, so it serves any question, and costs nothing to choose.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from introspect.policies.allocation import allocate
from introspect.policies.base import Policy, Prefilled, with_protected
from introspect_kernels import Segment

Ints = NDArray[np.int64]


class Coverage(Policy):
    """One entry of every stretch of text and of every patch of the picture; position 0 and the window are always kept.

    Attributes:
        first_layer: the first layer's share beside the protected entries, as a multiple of the mean.
    """

    name: ClassVar[str] = "coverage"
    first_layer: ClassVar[float] = 2.0

    def layers(self, prefilled: Prefilled, keep: int) -> Iterator[list[torch.Tensor]]:
        """`keep` entries per KV head in the mean over all heads, exactly."""
        rng = np.random.default_rng(prefilled.seed)
        protected = prefilled.protected()
        line = laid_out(prefilled)
        line = line[~protected.numpy()[line]]
        capacities = layer_shares(prefilled, keep, int(protected.sum()), self.first_layer)
        return ([self.one_head(line, protected, capacity, rng) for capacity in layer] for layer in capacities.tolist())

    def one_head(self, line: Ints, protected: torch.Tensor, capacity: int, rng: np.random.Generator) -> torch.Tensor:
        """The protected entries and one of each stretch of `line`, `capacity` in all, ascending."""
        wanted = capacity - int(protected.sum())
        chosen = stratified(line, wanted, rng) if wanted > 0 else line[:0]
        return with_protected(torch.from_numpy(chosen), protected, capacity)


def layer_shares(prefilled: Prefilled, keep: int, protected: int, first_layer: float) -> Ints:
    """`[layers, kv_heads]`: the first layer gets a multiple of the mean beside what is protected, the other layers the rest alike."""
    layers, heads = prefilled.num_layers, prefilled.num_kv_heads
    weights = np.ones((layers, heads))
    if layers > first_layer:  # with fewer layers nothing would be left for the others
        weights[0] = first_layer
        weights[1:] = (layers - first_layer) / (layers - 1)
    return allocate(weights, keep * layers * heads, low=min(keep, protected), high=prefilled.tokens)


def stratified(line: Ints, count: int, rng: np.random.Generator) -> Ints:
    """`count` of a line's entries: it is closed to a ring, cut at a random place into runs of equal length, and each gives one."""
    ring = np.roll(line, int(rng.integers(len(line))))
    edges = np.arange(count + 1) * len(ring) // count
    return ring[edges[:-1] + np.floor(rng.random(count) * np.diff(edges)).astype(np.int64)]


def laid_out(prefilled: Prefilled) -> Ints:
    """All entries on one line, neighbours beside neighbours: first what is no picture, then each picture along its Hilbert curve.

    Where a picture's tokens form no single grid (tiles), they stay in their own order, which runs along its rows.
    """
    if len(prefilled.segments) != prefilled.tokens:
        return np.arange(prefilled.tokens)
    is_image = prefilled.segments == Segment.IMAGE
    pictures = np.flatnonzero(is_image)
    if len(pictures) == sum(rows * columns for rows, columns in prefilled.grids):
        offsets = np.cumsum([0, *(rows * columns for rows, columns in prefilled.grids)])
        pictures = np.concatenate(
            [pictures[:0], *(pictures[start + hilbert_order(*grid)] for start, grid in zip(offsets[:-1], prefilled.grids, strict=True))]
        )
    return np.concatenate([np.flatnonzero(~is_image), pictures])


def hilbert_order(rows: int, columns: int) -> Ints:
    """`[rows * columns]`: the cells of a grid, numbered row by row, in the order in which Hilbert's curve visits them.

    The curve fills the smallest square with a power of two for its side; cells outside the grid are left out.
    """
    y, x = (axis.ravel().copy() for axis in np.mgrid[:rows, :columns])
    distance = np.zeros(rows * columns, dtype=np.int64)
    side = 1 << max(rows - 1, columns - 1, 1).bit_length()
    while side > 1:
        half = side // 2
        right, lower = x >= half, y >= half
        distance += half * half * ((3 * right) ^ lower)
        # Into the quadrant's own frame: the two upper ones are turned so that the curve stays in one piece.
        flip = ~lower & right
        x, y = np.where(flip, side - 1 - x, x), np.where(flip, side - 1 - y, y)
        x, y = np.where(lower, x, y), np.where(lower, y, x)
        x, y, side = x % half, y % half, half
    return distance.argsort(kind="stable")
