"""Figures of a list of times."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Median, 99th percentile and largest, in milliseconds, and how many there were."""
    times = 1000 * np.asarray(seconds)
    return {
        "median_ms": round(float(np.median(times)), 4),
        "p99_ms": round(float(np.percentile(times, 99)), 4),
        "max_ms": round(float(times.max()), 4),
        "count": len(seconds),
    }
