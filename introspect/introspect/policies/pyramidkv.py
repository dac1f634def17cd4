"""PyramidKV (Cai et al., arXiv 2406.02069): more entries for lower layers, where attention is spread wide."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import torch

from introspect.policies.allocation import allocate
from introspect.policies.base import Policy, Prefilled
from introspect.policies.window_scores import best_by_layer

BETA = 20
"""The top layer's share beside the window is 1/20 of the mean, the bottom layer's the rest of twice the mean."""


class PyramidKV(Policy):
    """Layers' shares fall in a straight line; heads of a layer get alike, and SnapKV's ranking fills them.

    What a lower layer cannot use because the prompt is short goes to the layers above it.
    """

    name: ClassVar[str] = "pyramidkv"

    def layers(self, prefilled: Prefilled, keep: int) -> Iterator[list[torch.Tensor]]:
        """`keep` entries per KV head in the mean over all heads, exactly."""
        layers, heads = prefilled.num_layers, prefilled.num_kv_heads
        line = np.linspace(2 - 1 / BETA, 1 / BETA, layers) if layers > 1 else np.ones(1)
        least = min(keep, int(prefilled.protected().sum()))
        weights = np.repeat(line[:, None], heads, axis=1)
        return best_by_layer(prefilled, allocate(weights, keep * layers * heads, low=least, high=prefilled.tokens))
