"""Scores become exponentials, and in the same pass everything is summed of them that each entry adds to; compiled by Numba.

Written in vectors as the products are (`cpu_vectors`): left to itself LLVM takes half of their length, and reduces every sum on its
own, where here four are reduced together.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from introspect_kernels.decode.cpu_vectors import INT, LANES, VECTOR, ZEROS, Rows, four_sums, plus_product, store

_PLAIN, _MEASURED = 0, 1
_LOG2_E = 1.4426950408889634
_LN_2_HIGH = 0.693359375  # so few bits that a multiple by any exponent is exact
_LN_2_LOW = -2.12194440e-4
_SMALLEST = -87.0  # below it e^x is no normal number; it counts as zero
# e^r = 1 + r + r^2 P(r) for |r| <= ln 2 / 2: coefficients of the minimax polynomial, as in Cephes' expf (Moshier, 1992).
_POLYNOMIAL = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
_WORD = ir.IntType(32)
_WORDS = ir.VectorType(_WORD, LANES)
_ALMOST_NOTHING = 1e-30  # sums of squares begin with it: squares of small e alone are hardly numbers, and processors slow at them


@njit(inline="always")
def exponentials(
    measure: bool, scores: Any, g: int, low: int, count: int, largest: Any, position: Any, first: int, query: Any, found: Any
) -> None:
    """`scores[g, low : low + count]` become e, relative to the largest.

    `found[0]` becomes sum e; it and each e are the same to the bit whatever is measured. Where it is, `found[1:]` become sum
    e (score - largest), sum e^2 and sum e (query - position), and zeros elsewhere.

    Args:
        measure: whether statistics are wanted.
        scores: fp32 `[group, entries]`.
        g: row of scores.
        low: first of the row's entries.
        count: of entries.
        largest: fp32, at least the largest of these scores.
        position: int32 `[slots]`.
        first: slot of the first entry.
        query: int32, the query's token index.
        found: fp32 `[4]`, written.
    """
    if measure:
        _exponentials(_MEASURED, scores, g, low, count, largest, position, first, query, found)
    else:
        _exponentials(_PLAIN, scores, g, low, count, largest, position, first, query, found)


@intrinsic(prefer_literal=True)
def _exponentials(
    typing: Any, measured: Any, scores: Any, g: Any, low: Any, count: Any, largest: Any, position: Any, first: Any, query: Any, found: Any
) -> Any:
    """See `exponentials`."""
    del typing, g, low, count, largest, first, query
    everything = measured.literal_value == _MEASURED

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kinds = signature.args
        row, where, sink = (Rows(context, builder, kinds[at], args[at]) for at in (1, 6, 9))
        g, low, count, first = args[2], args[3], args[4], args[7]
        largest, query = _everywhere(builder, args[5], VECTOR), _everywhere(builder, args[8], _WORDS)
        sums = [cgutils.alloca_once(builder, VECTOR) for _ in range(4 if everything else 1)]
        for total, begin in zip(sums, (ZEROS, ZEROS, _all(_ALMOST_NOTHING), ZEROS), strict=False):
            builder.store(begin, total)

        def take(scores: Any, positions: Any) -> None:
            x = _load(builder, scores, VECTOR)
            e, held = _exponential(builder, builder.fsub(x, largest))
            store(builder, e, scores)
            _add(builder, sums[0], e)
            if everything:
                _add_product(builder, sums[1], e, held)
                _add_product(builder, sums[2], e, e)
                distance = builder.sub(query, _load(builder, positions, _WORDS))
                _add_product(builder, sums[3], e, builder.sitofp(distance, VECTOR))

        rest = builder.urem(count, INT(LANES))
        whole = builder.sub(count, rest)
        with cgutils.for_range_slice(builder, INT(0), whole, INT(LANES)) as (j, _):
            take(row.at(g, builder.add(low, j)), where.at(builder.add(first, j), INT(0)))
        with builder.if_then(builder.icmp_unsigned(">", rest, INT(0))):
            # What is left is taken in memory of a whole vector, whose other lanes hold scores that have no e.
            begin, begin_at = row.at(g, builder.add(low, whole)), where.at(builder.add(first, whole), INT(0))
            scores, positions = cgutils.alloca_once(builder, VECTOR), cgutils.alloca_once(builder, _WORDS)
            builder.store(_all(float("-inf")), scores)
            builder.store(ir.Constant(_WORDS, [0] * LANES), positions)
            ours, ours_at = builder.ptrtoint(scores, INT), builder.ptrtoint(positions, INT)
            _copy(builder, begin, ours, rest)
            if everything:
                _copy(builder, begin_at, ours_at, rest)
            take(ours, ours_at)
            _copy(builder, ours, begin, rest)
        totals = [builder.load(total) for total in sums]
        store(builder, four_sums(builder, totals + [ZEROS] * (4 - len(totals))), sink.at(INT(0), INT(0)))
        return context.get_dummy_value()

    number = types.int64
    takes = (measured, scores, number, number, number, types.float32, position, number, types.int32, found)
    return types.void(*takes), generate


def _exponential(builder: Any, x: Any) -> Any:
    """e^x for x <= 0 within two units in the last place, zero below -87; and x where it is not below.

    With a score of -inf x would make NaN of what its e, which is none, is multiplied with.
    """
    none = builder.fcmp_ordered("<", x, _all(_SMALLEST))
    held = builder.select(none, _all(_SMALLEST), x)  # a NaN stays one
    # Cut off towards zero, so rounded: nothing is above zero here.
    exponent = builder.fptosi(builder.fsub(builder.fmul(held, _all(_LOG2_E)), _all(0.5)), _WORDS)
    power = builder.sitofp(exponent, VECTOR)
    r = plus_product(builder, plus_product(builder, held, power, _all(-_LN_2_HIGH)), power, _all(-_LN_2_LOW))
    p = _all(_POLYNOMIAL[0])
    for coefficient in _POLYNOMIAL[1:]:
        p = plus_product(builder, _all(coefficient), p, r)
    p = plus_product(builder, builder.fadd(r, _all(1.0)), builder.fmul(p, r), r)
    bits = builder.shl(builder.add(exponent, ir.Constant(_WORDS, [127] * LANES)), ir.Constant(_WORDS, [23] * LANES))
    return builder.select(none, ZEROS, builder.fmul(p, builder.bitcast(bits, VECTOR))), held


def _all(x: float) -> Any:
    """A constant in every lane."""
    return ir.Constant(VECTOR, [float(x)] * LANES)


def _everywhere(builder: Any, x: Any, kind: Any) -> Any:
    """A number in every lane."""
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), x, INT(0))
    return builder.shuffle_vector(first, first, ir.Constant(_WORDS, [0] * LANES))


def _load(builder: Any, at: Any, kind: Any) -> Any:
    """A vector at an address."""
    x = builder.load(builder.inttoptr(at, kind.as_pointer()))
    x.align = 4
    return x


def _add(builder: Any, total: Any, x: Any) -> None:
    """`total += x`, in memory that becomes a register."""
    builder.store(builder.fadd(builder.load(total), x), total)


def _add_product(builder: Any, total: Any, x: Any, y: Any) -> None:
    """`total += x y`, likewise."""
    builder.store(plus_product(builder, builder.load(total), x, y), total)


def _copy(builder: Any, source: Any, to: Any, count: Any) -> None:
    """Copy numbers of four bytes."""
    with cgutils.for_range_slice(builder, INT(0), count, INT(1)) as (j, _):
        offset = builder.mul(j, INT(4))
        x = builder.load(builder.inttoptr(builder.add(source, offset), _WORD.as_pointer()))
        builder.store(x, builder.inttoptr(builder.add(to, offset), _WORD.as_pointer()))
