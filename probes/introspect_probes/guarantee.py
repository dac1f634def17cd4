"""A confidence over which answers are right often enough, with a stated chance of being wrong about that.

Learn-then-Test (Angelopoulos et al., arXiv 2110.01052) with fixed-sequence testing
over a preset grid of thresholds, from the strictest to the most permissive. Void
where answers come from elsewhere than those it was chosen on.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from introspect_probes.signals import Guaranteed


@dataclass(frozen=True)
class Guarantee:
    """Of answers with at least `threshold` confidence at most `target_risk` are wrong, with probability 1 - `delta` over the choice.

    Attributes:
        target_risk: alpha.
        delta: chance that the threshold does not keep the promise.
        threshold: smallest confidence that is accepted.
        groups: independent groups of the choice, one random answer each.
        accepted: how many of these were accepted.
        wrong: how many of the accepted were wrong.
    """

    target_risk: float
    delta: float
    threshold: float
    groups: int
    accepted: int
    wrong: int

    def of(self, confidence: float) -> Guaranteed:
        """What it says of an answer."""
        return Guaranteed(confidence >= self.threshold, self.threshold, self.target_risk, self.delta)

    def as_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return asdict(self)
