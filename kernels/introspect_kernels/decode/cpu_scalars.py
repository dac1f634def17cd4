"""What the compiled CPU kernels need of single numbers: any dtype as fp32, addresses, a counter that threads share.

Numba compiles these with LLVM. Half-precision keys reach it as integers, because NumPy has no bf16 and Numba no fp16.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

# Sums may be reordered and contracted, which is what lets them vectorise; infinities and NaN keep their meaning.
FAST = {"contract", "reassoc", "nsz"}
ZERO = np.float32(0)


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
    """The int64 at an address, which is one more afterwards.

    Threads that call this never get the same number, and what one wrote before, those that come later see.
    """
    del typing, x

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        del context, signature
        where = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", where, ir.Constant(ir.IntType(64), 1), "acq_rel")

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
