"""Water-filling: a budget shared out over heads in proportion to weights, to the entry.

SparseMM's code rounds each head's share and cuts it at the prompt's length; what
is cut off is lost (with its own scores for LLaVA-Vicuna and 2,376 tokens, a
nominal 2,048 entries keep 767). Here what one head cannot use goes to the others.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def allocate(weights: NDArray[np.float64], total: int, *, low: int, high: int) -> NDArray[np.int64]:
    """Share `total` entries out: `low` for each head and the rest by weight, none above `high`.

    The real-valued shares are `min(high, low + t * weight)` with the one `t` that uses
    up the total; heads of no weight get more than `low` only once all others are full.
    Whole numbers come by largest remainder, ties by weight and then by place, so that
    a head of more weight never gets less.

    Args:
        weights: of any shape, not negative.
        total: entries for all heads together.
        low: the least that a head gets.
        high: the most that a head can use.

    Returns:
        `int64` of the weights' shape, with the sum `total`.

    Raises:
        ValueError: weights that are negative or not finite, or a total that the bounds do not allow.
    """
    flat = np.asarray(weights, dtype=np.float64).ravel()
    if not np.isfinite(flat).all() or (flat < 0).any():
        raise ValueError("weights must be finite and not negative")
    if not low * flat.size <= total <= high * flat.size:
        raise ValueError(f"{total} entries cannot be shared by {flat.size} heads of at least {low} and at most {high}")
    shares = _shares(flat, total, low, high)
    whole = np.minimum(np.floor(shares), high).astype(np.int64)
    order = np.lexsort((np.arange(flat.size), -flat, -(shares - whole)))
    left = total - int(whole.sum())
    while left > 0:
        for head in order:
            if left and whole[head] < high:
                whole[head] += 1
                left -= 1
    return whole.reshape(np.shape(weights))


def _shares(weights: NDArray[np.float64], total: int, low: int, high: int) -> NDArray[np.float64]:
    """The real-valued shares: full heads drop out and leave the rest to the others, until nobody is over."""
    shares = np.full(weights.size, float(low))
    is_open = np.ones(weights.size, dtype=bool)
    while is_open.any():
        spare = total - low * int(is_open.sum()) - high * int((~is_open).sum())
        largest = weights[is_open].max()
        scaled = weights[is_open] / largest if largest > 0 else np.ones(int(is_open.sum()))
        shares[is_open] = low + spare * (scaled / scaled.sum())
        full = is_open & (shares >= high)
        shares[full] = high
        if not full.any():
            break
        is_open &= ~full
    return shares
