"""A confidence over which answers are right often enough, with a stated chance of being wrong about that.

Learn-then-Test (Angelopoulos et al., arXiv 2110.01052) with fixed-sequence testing
over a preset grid of thresholds, from the strictest to the most permissive. Void
where answers come from elsewhere than those it was chosen on.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from introspect_probes.errors import FitError
from introspect_probes.signals import Guaranteed

Caches = Literal["whole", "reduced", "any"]
"""Of which answers something is promised: those whose cache was whole, or reduced, or all in the mix that was recorded."""


def caches_of(name: str) -> Caches:
    """`name` if it is one of `Caches`.

    Raises:
        FitError: it is none.
    """
    for known in get_args(Caches):
        if name == known:
            caches: Caches = known
            return caches
    raise FitError(f"expected a promise for whole, reduced or any caches, got {name!r}")


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
        caches: of which answers it is promised; of others nothing is.
    """

    target_risk: float
    delta: float
    threshold: float
    groups: int
    accepted: int
    wrong: int
    caches: Caches = "any"

    def covers(self, *, is_reduced: bool) -> bool:
        """Whether it says anything of an answer whose cache was reduced, or was not."""
        return self.caches == "any" or is_reduced == (self.caches == "reduced")

    def of(self, confidence: float, *, is_reduced: bool = False) -> Guaranteed | None:
        """What it says of an answer; nothing where it does not cover its cache."""
        if not self.covers(is_reduced=is_reduced):
            return None
        return Guaranteed(confidence >= self.threshold, self.threshold, self.target_risk, self.delta)

    def as_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return asdict(self)
