"""Ada-KV (Feng et al., arXiv 2407.11550): a layer's entries go to the heads whose attention needs them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import torch

from introspect.policies.base import Policy, Prefilled, Selection, with_protected
from introspect.policies.sparsemm import best_of_prefix
from introspect.policies.window_scores import pooled, ranked

FLOOR = 0.2
"""Share beside the window that each head keeps whatever its scores (kvpress's and SparseMM's value)."""
PAPER_FLOOR, PAPER_KERNEL = 0.5, 7


class AdaKV(Policy):
    """Within a layer, the highest window scores over all heads at once; each head keeps a floor.

    The layer's number of entries is exact by construction: entries are picked one by one.
    """

    name: ClassVar[str] = "adakv"

    def layers(self, prefilled: Prefilled, keep: int) -> Iterator[list[torch.Tensor]]:
        """`keep` entries per KV head in the mean over each layer, exactly."""
        protected = prefilled.protected()
        floor = _floor(int(protected.sum()), keep)
        return (_pick(pooled(scores).cpu(), protected, keep, floor) for scores in prefilled.scores)


def _floor(protected: int, keep: int) -> int:
    return min(keep, protected + int(FLOOR * max(0, keep - protected)))


def _pick(scores: torch.Tensor, protected: torch.Tensor, keep: int, floor: int) -> list[torch.Tensor]:
    """Each head's floor, then the best of what is left in the layer."""
    heads, tokens = scores.shape
    kept = torch.zeros(heads, tokens, dtype=torch.bool)
    for head, order in enumerate(ranked(scores)):
        kept[head, with_protected(order, protected, floor)] = True
    open_entries = scores.masked_fill(kept, -torch.inf).flatten().argsort(descending=True, stable=True)
    kept.view(-1)[open_entries[: heads * (keep - floor)]] = True
    return [row.nonzero().flatten() for row in kept]


class AdaKVPaper(Policy):
    """Ada-KV with its reference code's accounting, for comparison: heads' shares are rounded one by one.

    Floor one half, maximum over seven neighbours, position 0 not protected. The window is the request's,
    as for every policy here.
    """

    name: ClassVar[str] = "adakv-paper"

    def select(self, prefilled: Prefilled, keep: int) -> Selection:
        """About `keep` entries per KV head in the mean over each layer."""
        base, prefix = keep - prefilled.window, prefilled.tokens - prefilled.window
        rankings = [pooled(scores[:, :prefix], PAPER_KERNEL, "max") for scores in prefilled.scores]
        capacities = np.array([_shares(scores, base) for scores in rankings], dtype=np.int64)
        return best_of_prefix(rankings, np.minimum(capacities, prefix), prefilled)


def _shares(scores: torch.Tensor, base: int) -> list[int]:
    heads, prefix = scores.shape
    chosen = scores.flatten().topk(heads * base).indices // prefix
    counts = torch.bincount(chosen, minlength=heads).tolist()
    return [round(count * (1 - PAPER_FLOOR) + int(base * PAPER_FLOOR)) for count in counts]
