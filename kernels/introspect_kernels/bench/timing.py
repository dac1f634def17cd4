"""Times of several functions, taken in turn, so that whatever else the machine does falls on all of them alike."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping

Times = dict[str, list[float]]


def interleaved(calls: Mapping[str, Callable[[], object]], *, seconds: float, rounds: tuple[int, int] = (61, 400)) -> Times:
    """Call each function once a round, in another order each round, so that none always finds what one other left in the caches.

    Args:
        calls: what to call, by name.
        seconds: to spend, warm-up aside; after the smallest number of rounds no new one begins later.
        rounds: smallest and largest number of rounds.

    Returns:
        Seconds of every call, by name, in the order of the rounds.
    """
    names = list(calls)
    order = random.Random(0)  # noqa: S311 - an order, not a secret
    for name in names * 2:
        calls[name]()
    times: Times = {name: [] for name in names}
    end = time.perf_counter() + seconds
    for done in range(rounds[1]):
        if done >= rounds[0] and time.perf_counter() > end:
            break
        for name in order.sample(names, len(names)):
            start = time.perf_counter()
            calls[name]()
            times[name].append(time.perf_counter() - start)
    return times


def median_ratio(times: Times, over: str, under: str) -> float | None:
    """The median over rounds of one function's time over another's; None where one of them was not measured."""
    if over not in times or under not in times:
        return None
    return statistics.median(a / b for a, b in zip(times[over], times[under], strict=True))


def medians(times: Times) -> dict[str, float]:
    """Median time of each function, in milliseconds."""
    return {name: round(1000 * statistics.median(each), 4) for name, each in times.items()}
