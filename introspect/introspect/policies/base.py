"""What a policy gets and gives."""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

Selection = list[list[torch.Tensor]]
"""`selection[layer][kv_head]`: ascending indices (int64) of the prefilled entries to keep."""


@dataclass(frozen=True)
class Prefilled:
    """One prefilled sequence: all prompt tokens but the last.

    Attributes:
        tokens: prefilled tokens.
        num_layers: layers.
        num_kv_heads: KV heads in each.
        window: how many of the last queries the scores below rest on.
        scores: per layer `[kv_heads, tokens]`, attention that the window's queries give each entry:
            summed over the window's queries, averaged over the query group. Column sums, not pooled.
        seed: of the request's budget, for policies that draw.
        keys: per layer `[kv_heads, tokens, head_dim]`, after rotary positions.
        question_start: index of the first token of the question; `tokens` where no prefilled token is the question's.
        head_scores: `float64 [layers, kv_heads]`, how much each KV head sees; `None` where nobody measured it.
        values: per layer `[kv_heads, tokens, head_dim]`.
        segments: `uint8 [tokens]`, where each entry came from (`introspect_kernels.Segment`); empty where nobody knows.
        grids: rows and columns of each picture's tokens, in order; empty where they form no single grid.
    """

    tokens: int
    num_layers: int
    num_kv_heads: int
    window: int
    scores: list[torch.Tensor]
    seed: int
    keys: Sequence[torch.Tensor] = ()
    question_start: int = 0
    head_scores: NDArray[np.float64] | None = None
    values: Sequence[torch.Tensor] = ()
    segments: NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, dtype=np.uint8))
    grids: tuple[tuple[int, int], ...] = ()

    def protected(self) -> torch.Tensor:
        """`bool [tokens]`: position 0 and the window, which every head keeps.

        A head that loses its sink changes for a reason that has nothing to do with the evidence.
        """
        protected = torch.zeros(self.tokens, dtype=torch.bool)
        protected[0] = True
        protected[self.tokens - self.window :] = True
        return protected


class Policy(ABC):
    """Turns a budget into kept entries.

    A policy gives either `layers` or `select`. With `layers` the runtime drops a layer's other entries before it computes
    the next layer, so that the whole cache never exists; with `select`, which may look at all layers before it
    chooses for any, all of them are held until the prompt is read.

    Attributes:
        name: what a budget calls it.
        needs_budget: whether it can be used only with a budget.
        needs_head_scores: whether it can be used only with visual-head scores.
    """

    name: ClassVar[str]
    needs_budget: ClassVar[bool] = True
    needs_head_scores: ClassVar[bool] = False

    def layers(self, prefilled: Prefilled, keep: int) -> Iterator[list[torch.Tensor]]:
        """What `select` chooses, one layer after another.

        While the layers are computed, `scores`, `keys` and `values` hold the layers up to the one asked for, and of `keys`
        and `values` only that layer's are still there.
        """
        yield from self.select(prefilled, keep)

    @classmethod
    def is_layerwise(cls) -> bool:
        """Whether it chooses for each layer without a look at later ones."""
        return cls.select is Policy.select

    def select(self, prefilled: Prefilled, keep: int) -> Selection:
        """Choose `keep` entries per KV head on average, of `prefilled.tokens` (`1 <= keep <= tokens`).

        The mean is exact: `keep * num_layers * num_kv_heads` entries in all (the `-paper` policies aside, which say so).
        """
        return list(self.layers(prefilled, keep))


def with_protected(order: torch.Tensor, protected: torch.Tensor, keep: int) -> torch.Tensor:
    """The protected indices and then the best of `order`, `keep` in all, ascending.

    Args:
        order: `[tokens]`, entries from best to worst.
        protected: `bool [tokens]`, entries kept first, the last ones before the first ones where they are too many.
        keep: how many in all.
    """
    must = protected.nonzero().flatten()
    if len(must) >= keep:
        return torch.sort(must[len(must) - keep :]).values
    rest = order[~protected[order]]
    return torch.sort(torch.cat([must, rest[: keep - len(must)]])).values
