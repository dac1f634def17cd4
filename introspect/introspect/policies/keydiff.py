"""KeyDiff (Park et al., arXiv 2504.15364), before the question: keep the entries whose keys are least like the others.

Question-agnostic: what comes before the question is chosen by its keys alone, so
that one compressed picture serves any question about it. Of the question-agnostic
methods KVzip (arXiv 2505.23416) holds up best in text, but it makes the model repeat its
prompt, which costs a second prefill and which no model can do with a picture; Expected
Attention (arXiv 2510.00636) needs every query before its rotary position. KeyDiff needs
only the keys that are there anyway, in time linear in the prompt.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch.nn import functional

from introspect.policies.base import Policy, Prefilled, with_protected
from introspect.policies.window_scores import ranked


class KeyDiff(Policy):
    """The same number of entries for every head: position 0, the window, the question and what follows it, and the most unusual keys."""

    name: ClassVar[str] = "keydiff"

    def layers(self, prefilled: Prefilled, keep: int) -> Iterator[list[torch.Tensor]]:
        """Exactly `keep` entries for every head."""
        before = prefilled.question_start
        protected = prefilled.protected()
        protected[before:] = True
        orders = (ranked(unusualness(keys[:, :before])) for keys in prefilled.keys)
        return ([with_protected(order, protected, keep) for order in layer] for layer in orders)


def unusualness(keys: torch.Tensor) -> torch.Tensor:
    """`[kv_heads, tokens]`: minus the cosine between each key of `[kv_heads, tokens, head_dim]` and the mean direction of all."""
    directions = functional.normalize(keys.float(), dim=-1)
    return -functional.cosine_similarity(directions, directions.mean(1, keepdim=True), dim=-1)
