"""Water-filling: the sum is exact, the bounds hold, and more weight never gets less."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from introspect.policies.allocation import allocate

WEIGHTS = st.lists(st.floats(0, 1e6) | st.sampled_from([0.0, 1e-300, 1.0]), min_size=1, max_size=40)


@given(WEIGHTS, st.integers(0, 20), st.integers(0, 200), st.floats(0, 1))
@example([0.0, 0.0, 0.0], 2, 5, 0.5)  # nobody has any weight
@example([1e-300, 1.0], 0, 10, 0.9)  # a weight too small to divide by
@example([5.0, 5.0, 5.0], 1, 9, 0.49)  # ties that do not divide
def test_sum_bounds_and_order(weights: list[float], low: int, room: int, fill: float) -> None:
    given_, high = np.array(weights), low + room
    total = round(len(weights) * (low + fill * room))
    found = allocate(given_, total, low=low, high=high)
    assert found.sum() == total
    assert found.min() >= low
    assert found.max() <= high
    assert (np.diff(found[np.argsort(given_, kind="stable")]) >= 0).all() or _only_ties_differ(given_, found)


def _only_ties_differ(weights: np.ndarray, found: np.ndarray) -> bool:
    """Heads of equal weight may differ by one; heads of more weight never have less."""
    return all(
        found[i] >= found[j] if weights[i] > weights[j] else abs(found[i] - found[j]) <= 1
        for i in range(len(weights))
        for j in range(len(weights))
        if weights[i] >= weights[j]
    )


def test_shares_are_in_proportion_where_no_bound_is_met() -> None:
    assert allocate(np.array([1.0, 2.0, 5.0]), 160, low=0, high=1000).tolist() == [20, 40, 100]
    assert allocate(np.array([1.0, 2.0, 5.0]), 190, low=10, high=1000).tolist() == [30, 50, 110]


def test_what_a_full_head_leaves_is_shared_by_weight() -> None:
    assert allocate(np.array([8.0, 1.0, 3.0]), 120, low=0, high=60).tolist() == [60, 15, 45]


def test_the_shape_is_kept() -> None:
    assert allocate(np.ones((2, 3)), 7, low=1, high=2).shape == (2, 3)


@pytest.mark.parametrize(("weights", "total"), [([1.0, -1.0], 4), ([1.0, float("nan")], 4), ([1.0, 1.0], 1), ([1.0, 1.0], 21)])
def test_what_cannot_be_shared_is_refused(weights: list[float], total: int) -> None:
    with pytest.raises(ValueError, match=r"weights must be|cannot be shared"):
        allocate(np.array(weights), total, low=1, high=10)
