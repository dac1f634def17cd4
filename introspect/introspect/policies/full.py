"""Keep everything."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch

from introspect.policies.base import Policy, Prefilled


class Full(Policy):
    """The whole cache, the default; a budget makes no sense with it."""

    name: ClassVar[str] = "full"
    needs_budget: ClassVar[bool] = False

    def layers(self, prefilled: Prefilled, keep: int) -> Iterator[list[torch.Tensor]]:
        """Every entry of every head."""
        del keep
        everything = torch.arange(prefilled.tokens)
        return ([everything] * prefilled.num_kv_heads for _ in range(prefilled.num_layers))
