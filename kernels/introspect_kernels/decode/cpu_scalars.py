"""What the compiled CPU kernels need of single numbers: any dtype as fp32, and an exponential that vectorises.

Numba compiles these with LLVM. Half-precision keys reach it as integers, because NumPy has no bf16 and Numba no fp16.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

# Sums may be reordered and contracted, which is what lets them vectorise; infinities and NaN keep their meaning.
FAST = {"contract", "reassoc", "nsz"}
ZERO = np.float32(0)
HALF, ONE = np.float32(0.5), np.float32(1)
_LOG2_E = np.float32(1.4426950408889634)
_LN_2_HIGH = np.float32(0.693359375)  # so few bits that a multiple by any exponent is exact
_LN_2_LOW = np.float32(-2.12194440e-4)
_SMALLEST = np.float32(-87.0)  # below it e^x is no normal number; it counts as zero
# e^r = 1 + r + r^2 P(r) for |r| <= ln 2 / 2: coefficients of the minimax polynomial, as in Cephes' expf (Moshier, 1992).
_P0, _P1, _P2, _P3, _P4, _P5 = (
    np.float32(c) for c in (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
)


@intrinsic
def as_float(typing: Any, x: Any) -> Any:
    """Any stored number as fp32: bf16 as uint16, fp16 as int16, fp32 and fp64 as they are."""
    del typing

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        del context, signature
        (value,) = args
        if x == types.uint16:
            return builder.bitcast(builder.shl(builder.zext(value, ir.IntType(32)), ir.Constant(ir.IntType(32), 16)), ir.FloatType())
        if x == types.int16:
            return builder.fpext(builder.bitcast(value, ir.HalfType()), ir.FloatType())
        return builder.fptrunc(value, ir.FloatType()) if x == types.float64 else value

    return types.float32(x), generate


@intrinsic
def float_of_bits(typing: Any, x: Any) -> Any:
    """The fp32 number whose bits an int32 holds."""
    del typing, x

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        del context, signature
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), generate


@intrinsic
def address(typing: Any, x: Any) -> Any:
    """An integer as a pointer, for `numba.carray`."""
    del typing, x

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        del context, signature
        return builder.inttoptr(args[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), generate


@intrinsic
def take_next(typing: Any, x: Any) -> Any:
    """The int64 at an address, which is one more afterwards; threads that call this never get the same number."""
    del typing, x

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        del context, signature
        where = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", where, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(types.int64), generate


@intrinsic
def larger(typing: Any, x: Any, y: Any) -> Any:
    """The larger of two fp32 numbers, either if one is NaN: told so, LLVM vectorises a search for the largest."""
    del typing, x, y

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        del context, signature
        free = ("nnan", "nsz")
        return builder.select(builder.fcmp_ordered(">", *args, flags=free), *args, flags=free)

    return types.float32(types.float32, types.float32), generate


@njit(inline="always", fastmath=FAST)
def exponential(x: Any) -> Any:
    """e^x for x <= 0 within two units in the last place; zero below -87."""
    held = _SMALLEST if x < _SMALLEST else x  # a NaN stays one
    exponent = np.int32(held * _LOG2_E - HALF)  # cut off towards zero, so rounded: nothing is above zero here
    power = np.float32(exponent)
    r = held - power * _LN_2_HIGH - power * _LN_2_LOW
    p = ((((_P0 * r + _P1) * r + _P2) * r + _P3) * r + _P4) * r + _P5
    scaled = (p * r * r + r + ONE) * float_of_bits((exponent + np.int32(127)) << np.int32(23))
    return ZERO if x < _SMALLEST else scaled
