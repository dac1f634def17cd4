"""SnapKV (Li et al., arXiv 2404.14469): keep what the end of the prompt looks at."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import torch

from introspect.policies.base import Policy, Prefilled
from introspect.policies.window_scores import best_by_layer


class SnapKV(Policy):
    """The same number of entries for every head: the window, position 0, and the best of the window's pooled scores.

    Scores are the window's summed attention, averaged over the query group and
    smoothed by an average over five neighbours. Position 0 is kept because a
    head that loses its sink changes for a reason that has nothing to do with the evidence.
    """

    name: ClassVar[str] = "snapkv"

    def layers(self, prefilled: Prefilled, keep: int) -> Iterator[list[torch.Tensor]]:
        """Exactly `keep` entries for every head."""
        return best_by_layer(prefilled, np.full((prefilled.num_layers, prefilled.num_kv_heads), keep, dtype=np.int64))
