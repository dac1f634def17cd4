"""Keep entries drawn at random: the null that every other policy must beat."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch

from introspect.policies.base import Policy, Prefilled, with_protected


class Random(Policy):
    """A uniform draw for each head; position 0 and the prefill window are always kept."""

    name: ClassVar[str] = "random"

    def layers(self, prefilled: Prefilled, keep: int) -> Iterator[list[torch.Tensor]]:
        """Exactly `keep` entries for every head."""
        generator = torch.Generator().manual_seed(prefilled.seed)
        protected = prefilled.protected()
        return (
            [with_protected(torch.randperm(prefilled.tokens, generator=generator), protected, keep) for _ in range(prefilled.num_kv_heads)]
            for _ in range(prefilled.num_layers)
        )
