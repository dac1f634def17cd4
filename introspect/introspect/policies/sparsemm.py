"""SparseMM (Wang et al., arXiv 2506.05344): the cache to the heads that see."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from introspect.errors import RequestError
from introspect.policies.allocation import allocate
from introspect.policies.base import Policy, Prefilled, Selection
from introspect.policies.window_scores import best_by_layer, pooled, ranked

RHO = 0.1
"""Share of the budget beside the window that is given to all heads alike (the paper's)."""


class SparseMM(Policy):
    """Capacities over all layers by visual-head score, SnapKV's ranking within a head.

    Every head keeps the window, position 0 and a tenth of the rest alike; the other
    nine tenths go by score. What a head cannot use goes to the others, so that the budget is kept to the entry.
    """

    name: ClassVar[str] = "sparsemm"
    needs_head_scores: ClassVar[bool] = True

    def layers(self, prefilled: Prefilled, keep: int) -> Iterator[list[torch.Tensor]]:
        """`keep` entries per KV head in the mean over all heads, exactly."""
        scores = head_scores_of(prefilled, self.name)
        least = min(keep, int(prefilled.protected().sum()))
        low = least + int(RHO * (keep - least))
        return best_by_layer(prefilled, allocate(scores, keep * scores.size, low=low, high=prefilled.tokens))


class SparseMMPaper(Policy):
    """SparseMM with its reference code's accounting, for comparison: it does not keep its budget.

    A head's share is rounded and cut at the prompt's length; what is cut off is lost.
    Position 0 is not protected. The window is the request's, as for every policy here
    (32 queries from a budget of 128 entries on, as in the paper).
    """

    name: ClassVar[str] = "sparsemm-paper"
    needs_head_scores: ClassVar[bool] = True

    def select(self, prefilled: Prefilled, keep: int) -> Selection:
        """At most `keep` entries per KV head in the mean, but for rounding, and often far fewer."""
        scores = head_scores_of(prefilled, self.name)
        base, prefix = keep - prefilled.window, prefilled.tokens - prefilled.window
        least = int(base * RHO)
        shares = scores / scores.sum() * ((base - least) * scores.size) + least
        capacities = np.minimum(np.rint(shares), prefix).astype(np.int64)
        return best_of_prefix([pooled(s[:, :prefix]) for s in prefilled.scores], capacities, prefilled)


def head_scores_of(prefilled: Prefilled, policy: str) -> NDArray[np.float64]:
    """The KV heads' scores `[layers, kv_heads]`.

    Raises:
        RequestError: there are none, or they are all zero.
    """
    if prefilled.head_scores is None:
        raise RequestError(f"policy {policy!r} needs visual-head scores; make them with `introspect score-heads`")
    if not prefilled.head_scores.any():
        raise RequestError(f"policy {policy!r} needs visual-head scores, and those of this model are all zero")
    return prefilled.head_scores


def best_of_prefix(rankings: list[torch.Tensor], capacities: NDArray[np.int64], prefilled: Prefilled) -> Selection:
    """The window, and before it each head's capacity of entries by `rankings` (per layer `[kv_heads, prefix]`)."""
    window = torch.arange(prefilled.tokens - prefilled.window, prefilled.tokens)
    return [
        [torch.cat([order[: int(n)].sort().values, window]) for order, n in zip(ranked(scores), row, strict=True)]
        for scores, row in zip(rankings, capacities, strict=True)
    ]
