"""StreamingLLM (Xiao et al., arXiv 2309.17453): the first few tokens and the last ones, whatever they hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch

from introspect.policies.base import Policy, Prefilled, with_protected

SINKS = 4
"""Attention sinks kept at the front, the paper's number."""


class Streaming(Policy):
    """Four sinks and the most recent entries, the same for every head; of a picture, its last rows at best."""

    name: ClassVar[str] = "streaming"

    def layers(self, prefilled: Prefilled, keep: int) -> Iterator[list[torch.Tensor]]:
        """Exactly `keep` entries for every head."""
        sinks = torch.arange(min(SINKS, prefilled.tokens))
        recent = torch.arange(prefilled.tokens - 1, len(sinks) - 1, -1)
        kept = with_protected(torch.cat([sinks, recent]), prefilled.protected(), keep)
        return ([kept] * prefilled.num_kv_heads for _ in range(prefilled.num_layers))
