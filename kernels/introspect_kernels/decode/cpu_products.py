"""The two products of decode attention, a few query heads with many entries; compiled by Numba.

Two heads and four entries at a time: what is read of one serves the other. Rows that come later are asked for early;
without that, reading and computing take their times one after the other.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from introspect_kernels.decode.cpu_scalars import FAST, ZERO, as_float, prefetch

_AHEAD = 16  # rows
_LINE = 64  # bytes


@njit(inline="always")
def _ask_for(x: Any, row: int) -> None:
    """Ask for four rows."""
    begin = x.ctypes.data + row * x.strides[0]
    for byte in range(0, 4 * x.strides[0], _LINE):
        prefetch(begin + byte)


@njit(fastmath=FAST)
def scores_of(q: Any, k: Any, first: int, count: int, scores: Any, at: int) -> None:
    """`scores[g, at + j] = q[g] . k[first + j]`.

    Args:
        q: fp32 `[group, head_dim]`, scaled.
        k: `[slots, >= head_dim]`, any type that `as_float` takes.
        first: first row of k.
        count: rows.
        scores: fp32 `[group, >= at + count]`, written.
        at: first column.
    """
    group, head_dim = q.shape
    fours, twos = count - count % 4, group - group % 2
    for j in range(0, fours, 4):
        row = first + j
        _ask_for(k, row + _AHEAD)
        for g in range(0, twos, 2):
            a0, a1, a2, a3 = ZERO, ZERO, ZERO, ZERO
            b0, b1, b2, b3 = ZERO, ZERO, ZERO, ZERO
            for i in range(head_dim):
                a, b = q[g, i], q[g + 1, i]
                k0, k1, k2, k3 = as_float(k[row, i]), as_float(k[row + 1, i]), as_float(k[row + 2, i]), as_float(k[row + 3, i])
                a0 += a * k0
                a1 += a * k1
                a2 += a * k2
                a3 += a * k3
                b0 += b * k0
                b1 += b * k1
                b2 += b * k2
                b3 += b * k3
            scores[g, at + j], scores[g, at + j + 1], scores[g, at + j + 2], scores[g, at + j + 3] = a0, a1, a2, a3
            scores[g + 1, at + j], scores[g + 1, at + j + 1], scores[g + 1, at + j + 2], scores[g + 1, at + j + 3] = b0, b1, b2, b3
        for g in range(twos, group):
            a0, a1, a2, a3 = ZERO, ZERO, ZERO, ZERO
            for i in range(head_dim):
                a = q[g, i]
                a0 += a * as_float(k[row, i])
                a1 += a * as_float(k[row + 1, i])
                a2 += a * as_float(k[row + 2, i])
                a3 += a * as_float(k[row + 3, i])
            scores[g, at + j], scores[g, at + j + 1], scores[g, at + j + 2], scores[g, at + j + 3] = a0, a1, a2, a3
    for j in range(fours, count):
        for g in range(group):
            a0 = ZERO
            for i in range(head_dim):
                a0 += q[g, i] * as_float(k[first + j, i])
            scores[g, at + j] = a0


@njit(fastmath=FAST)
def add_values(p: Any, at: int, v: Any, first: int, count: int, out: Any) -> None:
    """`out[g] += sum over j of p[g, at + j] v[first + j]`; shapes as in `scores_of`."""
    group, head_dim = out.shape
    fours, twos = count - count % 4, group - group % 2
    for j in range(0, fours, 4):
        row = first + j
        _ask_for(v, row + _AHEAD)
        for g in range(0, twos, 2):
            a0, a1, a2, a3 = p[g, at + j], p[g, at + j + 1], p[g, at + j + 2], p[g, at + j + 3]
            b0, b1, b2, b3 = p[g + 1, at + j], p[g + 1, at + j + 1], p[g + 1, at + j + 2], p[g + 1, at + j + 3]
            for i in range(head_dim):
                v0, v1, v2, v3 = as_float(v[row, i]), as_float(v[row + 1, i]), as_float(v[row + 2, i]), as_float(v[row + 3, i])
                out[g, i] += (a0 * v0 + a1 * v1) + (a2 * v2 + a3 * v3)
                out[g + 1, i] += (b0 * v0 + b1 * v1) + (b2 * v2 + b3 * v3)
        for g in range(twos, group):
            a0, a1, a2, a3 = p[g, at + j], p[g, at + j + 1], p[g, at + j + 2], p[g, at + j + 3]
            for i in range(head_dim):
                v0, v1, v2, v3 = as_float(v[row, i]), as_float(v[row + 1, i]), as_float(v[row + 2, i]), as_float(v[row + 3, i])
                out[g, i] += (a0 * v0 + a1 * v1) + (a2 * v2 + a3 * v3)
    for j in range(fours, count):
        for g in range(group):
            a0 = p[g, at + j]
            for i in range(head_dim):
                out[g, i] += a0 * as_float(v[first + j, i])


@njit(fastmath=FAST)
def widen(x: Any, first: int, count: int, rows: Any) -> None:
    """Rows of half precision as fp32, once for all heads of a group that read them."""
    for j in range(count):
        if j % 4 == 0:
            _ask_for(x, first + j + _AHEAD)
        for i in range(rows.shape[1]):
            rows[j, i] = as_float(x[first + j, i])
