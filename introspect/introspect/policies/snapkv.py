"""SnapKV (Li et al., arXiv 2404.14469): keep what the end of the prompt looks at."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch.nn import functional

from introspect.policies.base import Policy, Prefilled, Selection, with_protected

_KERNEL = 5


class SnapKV(Policy):
    """The same number of entries for every head: the window, position 0, and the best of the window's pooled scores.

    Scores are the window's summed attention, averaged over the query group and
    smoothed by an average over five neighbours. Position 0 is kept because a
    head that loses its sink changes for a reason that has nothing to do with the evidence.
    """

    name: ClassVar[str] = "snapkv"

    def select(self, prefilled: Prefilled, keep: int) -> Selection:
        """Exactly `keep` entries for every head."""
        protected = torch.zeros(prefilled.tokens, dtype=torch.bool)
        protected[0] = True
        protected[prefilled.tokens - prefilled.window :] = True
        selection: Selection = []
        for scores in prefilled.scores:
            pooled = functional.avg_pool1d(scores[:, None], _KERNEL, stride=1, padding=_KERNEL // 2)[:, 0]
            orders = pooled.argsort(dim=-1, descending=True, stable=True).cpu()
            selection.append([with_protected(order, protected, keep) for order in orders])
        return selection
