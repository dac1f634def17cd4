"""The two products of the CPU path against NumPy, on whatever processor Numba is told to compile for."""

from __future__ import annotations

import numpy as np

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
        scores = np.full((group, count + 1), np.nan, np.float32)
        scores_of(q, rows, rows, 2, count, scores)
        np.testing.assert_allclose(scores[:, :-1], q @ exact[2:-2].T, rtol=1e-4, atol=1e-4, err_msg=case)
        assert np.isnan(scores[:, -1]).all(), case
        out = np.ones((group, head_dim), np.float32)
        add_values(p, 1, rows, 2, count, 2 + count, out)
        np.testing.assert_allclose(out, 1 + p[:, 1:-1] @ exact[2:-2], rtol=1e-4, atol=1e-4, err_msg=case)
