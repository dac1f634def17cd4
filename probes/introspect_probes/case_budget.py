"""Each case's own draw, for policies that draw: with one seed for all, every prompt of a length would lose the same entries."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256

from introspect.types import Budget


def budget_for(case_id: str, budget: Budget) -> Budget:
    """The budget with a seed that depends on the case's id alone, so that an intervention on the case meets the same draw."""
    return replace(budget, seed=int.from_bytes(sha256(case_id.encode()).digest()[:4], "big"))
