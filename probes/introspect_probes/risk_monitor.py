"""Is the guarantee still kept? Watched online, from labels as they come."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import numpy as np
from mapie.exchangeability_testing import RiskMonitoring

from introspect_probes.guarantee import Guarantee


class RiskMonitor:
    """Watches whether a guarantee still holds: MAPIE's anytime-valid bound on the share of wrong answers among the accepted.

    After Podkopaev and Ramdas (arXiv 2110.06177).

    Args:
        guarantee: what was promised.
        level: chance of ever raising the alarm while the promise holds, however long it is watched.
    """

    def __init__(self, guarantee: Guarantee, *, level: float = 0.05) -> None:
        self.guarantee = guarantee
        # MAPIE gives half of its level to a reference sample; here the threshold is the promise itself, so all of it is ours.
        self._monitor = RiskMonitoring(risk="accuracy", test_level=min(2 * level, 0.999), threshold=guarantee.target_risk, warn=False)
        self.accepted = 0

    def update(self, labels: Iterable[tuple[float, int]]) -> bool:
        """Take labelled answers as `(confidence, 1 right or 0 wrong)`; those under the threshold promise nothing.

        Returns:
            Whether the share of wrong answers among the accepted is now known to exceed the promise.
        """
        right = np.array([correct for confidence, correct in labels if confidence >= self.guarantee.threshold], dtype=int)
        if len(right):
            self.accepted += len(right)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # of a sequence of one
                self._monitor.update(right, np.ones_like(right))
        return self.accepted > 0 and bool(self._monitor.harmful_shift_detected)
