"""The two products of the CPU path against NumPy, on whatever processor Numba is told to compile for."""

from __future__ import annotations

import numpy as np

from introspect_kernels.decode.cpu_exponentials import exponentials
from introspect_kernels.decode.cpu_products import add_values, scores_of
from introspect_kernels.decode.cpu_vectors import LANES

GROUPS = (1, 2, 3, 7, 16)
HEAD_DIMS = (7 * LANES, 5 * LANES + 3, 3)  # every number of vectors at once, a rest, and nothing but a rest
COUNTS = (133, 3)  # two tiles of values and one that is not full; rows beside those that are taken together, and nothing else


def check_products(dtype: str, lanes: int | None = None) -> None:
    """Raise where a product is wrong, or where vectors are not as long as expected."""
    assert lanes in {None, LANES}, LANES
    rng = np.random.default_rng(0)
    for group, head_dim, count in ((g, d, n) for g in GROUPS for d in HEAD_DIMS for n in COUNTS):
        stored = rng.standard_normal((count + 4, head_dim)).astype(np.float32)
        rows = stored if dtype == "float32" else (stored.view(np.uint32) >> 16).astype(np.uint16)
        exact = stored if dtype == "float32" else (rows.astype(np.uint32) << 16).view(np.float32)
        q, p = (rng.standard_normal((group, n)).astype(np.float32) for n in (head_dim, count + 2))
        case = f"{dtype}, group {group}, head_dim {head_dim}, {count} rows"
        scores = np.full((group + 3, count + 1), np.nan, np.float32)  # heads and entries that are none of ours stay as they are
        scores_of(q, rows, rows, 2, count, scores)
        np.testing.assert_allclose(scores[:group, :-1], q @ exact[2:-2].T, rtol=1e-4, atol=1e-4, err_msg=case)
        assert np.isnan(scores[:, -1]).all(), case
        assert np.isnan(scores[group:]).all(), case
        more = np.ones((group + 3, head_dim), np.float32)
        out = more[:group]
        add_values(p, 1, rows, 2, count, 2 + count, out)
        assert (more[group:] == 1).all(), case
        np.testing.assert_allclose(out, 1 + p[:, 1:-1] @ exact[2:-2], rtol=1e-4, atol=1e-4, err_msg=case)


def check_exponentials() -> None:
    """Raise where e or a sum is wrong: whole vectors, a rest, and nothing but a rest; masked scores, and e whose squares are no numbers."""
    rng = np.random.default_rng(1)
    for count in (4 * LANES, 3 * LANES + 1, LANES - 1, 1):
        scores = rng.standard_normal((3, count + 5)).astype(np.float32) * 20
        scores[1, 2] = -np.inf
        scores[1, 2 + count :] = np.nan  # others' scores, which are not looked at
        before, position = scores.copy(), np.arange(7, 7 + count + 4, dtype=np.int32)
        largest, found, plain = np.float32(75.0), np.full(4, np.nan, np.float32), np.full(4, np.nan, np.float32)
        alone = scores.copy()
        exponentials(True, scores, 1, 2, count, largest, position, 3, np.int32(500), found)
        exponentials(False, alone, 1, 2, count, largest, position, 3, np.int32(500), plain)
        shifted = (before[1, 2 : 2 + count] - largest).astype(np.float64)
        e = np.where(shifted < -87, 0.0, np.exp(shifted))
        products = e * np.where(e > 0, shifted, 0.0), e * e, e * (500.0 - position[3 : 3 + count])
        exact = [e.sum(), *(each.sum() for each in products)]
        np.testing.assert_allclose(scores[1, 2 : 2 + count], e, rtol=6e-7, atol=1e-37, err_msg=str(count))
        np.testing.assert_allclose(found, exact, rtol=3e-6, atol=1e-28, err_msg=str(count))
        assert np.array_equal(scores, alone, equal_nan=True), count
        assert plain.tolist() == [found[0], 0.0, 0.0, 0.0], count
        scores[1, 2 : 2 + count] = before[1, 2 : 2 + count]
        assert np.array_equal(scores, before, equal_nan=True), count
