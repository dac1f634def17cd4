"""SnapKV's ranking (Li et al., arXiv 2404.14469), which several policies share: what the prompt's last queries look at."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from introspect.policies.base import Prefilled, with_protected

KERNEL = 5
Pooling = Literal["average", "max"]


def pooled(scores: torch.Tensor, kernel: int = KERNEL, pooling: Pooling = "average") -> torch.Tensor:
    """Scores `[kv_heads, tokens]` smoothed over `kernel` neighbours, so that an entry brings its surroundings along."""
    pool = functional.avg_pool1d if pooling == "average" else functional.max_pool1d
    return pool(scores[:, None], kernel, stride=1, padding=kernel // 2)[:, 0]


def ranked(scores: torch.Tensor) -> torch.Tensor:
    """`[kv_heads, tokens]`: indices from the highest score to the lowest, ties in order of position; on the CPU."""
    return scores.argsort(dim=-1, descending=True, stable=True).cpu()


def best_by_layer(prefilled: Prefilled, capacities: NDArray[np.int64]) -> Iterator[list[torch.Tensor]]:
    """For each head its capacity's worth of entries: position 0 and the window, then the best pooled window scores.

    Args:
        prefilled: the sequence.
        capacities: `int64 [layers, kv_heads]`, entries for each head.
    """
    protected = prefilled.protected()
    return (
        [with_protected(order, protected, int(capacity)) for order, capacity in zip(ranked(pooled(scores)), row, strict=True)]
        for scores, row in zip(prefilled.scores, capacities, strict=True)
    )
