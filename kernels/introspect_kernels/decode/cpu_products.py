"""The two products of decode attention, a few query heads with many entries; compiled by Numba.

What is read of a key or a value is made fp32 once and serves several heads; the sums of a few heads and entries stay in
registers. Rows that come later are asked for early: without that, reading and computing take their times one after the other.
"""

from __future__ import annotations

from typing import Any

from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from introspect_kernels.decode.cpu_scalars import ZERO, as_float
from introspect_kernels.decode.cpu_vectors import (
    HEADS_AT_ONCE,
    INT,
    LANES,
    ROWS_AT_ONCE,
    VECTOR,
    ZEROS,
    Rows,
    ask_for,
    four_sums,
    number,
    plus_product,
    store,
    wide,
)

_AHEAD = 32  # rows
_LINE = 64  # bytes
_TILE = 64  # entries whose values are read in one go, part of a row after part: they stay in the first-level cache


@njit
def scores_of(q: Any, k: Any, v: Any, first: int, count: int, scores: Any) -> None:
    """`scores[g, j] = q[g] . k[first + j]`.

    Args:
        q: fp32 `[group, head_dim]`, scaled.
        k: `[slots, head_dim]`, any type that `as_float` takes.
        v: likewise; its first rows are asked for while the last keys are used, so that memory is never idle.
        first: first row.
        count: rows.
        scores: fp32 `[group, >= count]`, written.
    """
    group, head_dim = q.shape
    fours, whole = count - count % ROWS_AT_ONCE, head_dim - head_dim % LANES
    for j in range(0, fours, ROWS_AT_ONCE):
        if j + _AHEAD < count:
            _ask_rows(ROWS_AT_ONCE, k, first + j + _AHEAD)
        else:
            _ask_rows(ROWS_AT_ONCE, v, first + j + _AHEAD - count)
        g = 0
        while g + HEADS_AT_ONCE <= group:
            _score(HEADS_AT_ONCE, ROWS_AT_ONCE, q, g, k, first + j, whole, scores, j)
            g += HEADS_AT_ONCE
        if g + 3 == group:
            _score(3, ROWS_AT_ONCE, q, g, k, first + j, whole, scores, j)
        elif g + 2 == group:
            _score(2, ROWS_AT_ONCE, q, g, k, first + j, whole, scores, j)
        elif g + 1 == group:
            _score(1, ROWS_AT_ONCE, q, g, k, first + j, whole, scores, j)
    for j in range(fours, count):
        for g in range(group):
            _score(1, 1, q, g, k, first + j, whole, scores, j)
    if whole < head_dim:
        for j in range(count):
            for g in range(group):
                for i in range(whole, head_dim):
                    scores[g, j] += q[g, i] * as_float(k[first + j, i])


@intrinsic(prefer_literal=True)
def _score(typing: Any, heads: Any, rows: Any, q: Any, g: Any, k: Any, row: Any, head_dim: Any, scores: Any, j: Any) -> Any:
    """`scores[g + h, j + r] = q[g + h] . k[row + r]` for some heads h and rows r, over a multiple of `LANES` columns."""
    del typing, g, row, head_dim, j
    at_once, of_row = range(heads.literal_value), range(rows.literal_value)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kinds = signature.args
        queries, keys, out = (Rows(context, builder, kinds[at], args[at]) for at in (2, 4, 7))
        g, row, columns, j = (args[at] for at in (3, 5, 6, 8))
        sums = [[cgutils.alloca_once(builder, VECTOR) for _ in of_row] for _ in at_once]
        for total in (total for each in sums for total in each):
            builder.store(ZEROS, total)
        with cgutils.for_range_slice(builder, INT(0), columns, INT(LANES)) as (i, _):
            read = [wide(builder, keys.at(builder.add(row, INT(r)), i), keys.kind) for r in of_row]
            for h in at_once:
                query = wide(builder, queries.at(builder.add(g, INT(h)), i), queries.kind)
                for total, key in zip(sums[h], read, strict=True):
                    builder.store(plus_product(builder, builder.load(total), query, key), total)
        for h in at_once:
            padded = [builder.load(total) for total in sums[h]] + [ZEROS] * (4 - len(of_row))
            found = four_sums(builder, padded)
            where = out.at(builder.add(g, INT(h)), j)
            store(builder, found if len(of_row) == 4 else builder.extract_element(found, INT(0)), where)
        return context.get_dummy_value()

    return types.void(heads, rows, q, types.int64, k, types.int64, types.int64, scores, types.int64), generate


@intrinsic(prefer_literal=True)
def _ask_rows(typing: Any, rows: Any, x: Any, row: Any) -> Any:
    """Ask for some rows, which need not be there."""
    del typing, row
    count = rows.literal_value

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        asked = Rows(context, builder, signature.args[1], args[1])
        begin = asked.at(args[2], INT(0))
        with cgutils.for_range_slice(builder, INT(0), builder.mul(INT(count), asked.stride), INT(_LINE)) as (byte, _):
            ask_for(builder, builder.add(begin, byte))
        return context.get_dummy_value()

    return types.void(rows, x, types.int64), generate


@njit
def add_values(p: Any, at: int, v: Any, first: int, count: int, end: int, out: Any) -> None:
    """`out[g] += sum over j of p[g, at + j] v[first + j]`; shapes as in `scores_of`. Rows from `end` on are not asked for."""
    group, head_dim = out.shape
    whole = head_dim - head_dim % LANES
    for j in range(0, count, _TILE):
        rows = min(_TILE, count - j)
        g = 0
        while g + HEADS_AT_ONCE <= group:
            _add_heads(HEADS_AT_ONCE, p, g, at + j, v, first + j, rows, whole, end, out)
            g += HEADS_AT_ONCE
        if g + 3 == group:
            _add_heads(3, p, g, at + j, v, first + j, rows, whole, end, out)
        elif g + 2 == group:
            _add_heads(2, p, g, at + j, v, first + j, rows, whole, end, out)
        elif g + 1 == group:
            _add_heads(1, p, g, at + j, v, first + j, rows, whole, end, out)
    for g in range(group):
        for i in range(whole, head_dim):
            total = ZERO
            for j in range(count):
                total += p[g, at + j] * as_float(v[first + j, i])
            out[g, i] += total


@njit(inline="always")
def _add_heads(heads: int, p: Any, g: int, at: int, v: Any, first: int, count: int, head_dim: int, end: int, out: Any) -> None:
    """`add_values` for some heads and rows, over a multiple of `LANES` columns."""
    i = 0
    while i + 4 * LANES <= head_dim:
        _add(heads, 4, p, g, at, v, first, count, i, end, out)
        i += 4 * LANES
    while i + 2 * LANES <= head_dim:
        _add(heads, 2, p, g, at, v, first, count, i, end, out)
        i += 2 * LANES
    if i < head_dim:
        _add(heads, 1, p, g, at, v, first, count, i, end, out)


@intrinsic(prefer_literal=True)
def _add(
    typing: Any, heads: Any, parts: Any, p: Any, g: Any, at: Any, v: Any, first: Any, count: Any, column: Any, end: Any, out: Any
) -> Any:
    """`out[g + h, i] += sum over j of p[g + h, at + j] v[first + j, i]` for some heads h and `parts` times `LANES` columns i."""
    del typing, g, at, first, count, column, end
    at_once, of_row = range(heads.literal_value), range(parts.literal_value)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kinds = signature.args
        weights, values, sink = (Rows(context, builder, kinds[at], args[at]) for at in (2, 5, 10))
        g, at, first, count, column, end = (args[n] for n in (3, 4, 6, 7, 8, 9))
        sums = [[cgutils.alloca_once(builder, VECTOR) for _ in of_row] for _ in at_once]
        for total in (total for each in sums for total in each):
            builder.store(ZEROS, total)
        with cgutils.for_range_slice(builder, INT(0), count, INT(1)) as (j, _):
            begin = values.at(builder.add(first, j), column)
            later = builder.add(builder.add(first, j), INT(_AHEAD))
            ahead = values.at(builder.select(builder.icmp_signed("<", later, end), later, end), column)
            width = LANES * values.size
            for byte in range(0, len(of_row) * width, _LINE):
                ask_for(builder, builder.add(ahead, INT(byte)))
            read = [wide(builder, builder.add(begin, INT(part * width)), values.kind) for part in of_row]
            for h in at_once:
                weight = number(builder, weights.at(builder.add(g, INT(h)), builder.add(at, j)))
                for total, value in zip(sums[h], read, strict=True):
                    builder.store(plus_product(builder, builder.load(total), weight, value), total)
        for h in at_once:
            for part in of_row:
                where = sink.at(builder.add(g, INT(h)), builder.add(column, INT(part * LANES)))
                store(builder, builder.fadd(wide(builder, where, sink.kind), builder.load(sums[h][part])), where)
        return context.get_dummy_value()

    return types.void(heads, parts, p, types.int64, types.int64, v, types.int64, types.int64, types.int64, types.int64, out), generate
