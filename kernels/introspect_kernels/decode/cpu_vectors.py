"""Vectors of fp32 numbers in LLVM's terms, for the two products of `cpu_products`.

Left to itself LLVM vectorises along one loop, half as wide as it could, and reduces every sum on its own. Here what is kept in
registers is said by name, and four sums are reduced together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.core.codegen import get_host_cpu_features

_FEATURES = get_host_cpu_features() if config.CPU_FEATURES is None else config.CPU_FEATURES
_WIDE = "+avx512f" in _FEATURES.split(",")
LANES = 16 if _WIDE else 8 if "+avx" in _FEATURES.split(",") else 4
HEADS_AT_ONCE = 4 if _WIDE else 2  # with four rows or four vectors of a row, their sums fill half of the registers that there are
ROWS_AT_ONCE = 4

FLOAT, INT = ir.FloatType(), ir.IntType(64)
VECTOR = ir.VectorType(FLOAT, LANES)
ZEROS = ir.Constant(VECTOR, [0.0] * LANES)
_BYTE = ir.IntType(8)
_FUSED = ("contract",)  # a product and a sum may become one instruction


class Rows:
    """A matrix that a compiled function was given, whose rows hold numbers that follow each other.

    Args:
        context: of the compilation.
        builder: likewise.
        kind: Numba's type of the array.
        value: the array.
    """

    def __init__(self, context: Any, builder: Any, kind: Any, value: Any) -> None:
        array = context.make_array(kind)(context, builder, value)
        self._builder, self.kind = builder, kind.dtype
        self._begin = builder.ptrtoint(array.data, INT)
        self.stride = cgutils.unpack_tuple(builder, array.strides)[0]
        self.size = kind.dtype.bitwidth // 8

    def at(self, row: Any, column: Any) -> Any:
        """Address of a number."""
        b = self._builder
        return b.add(self._begin, b.add(b.mul(row, self.stride), b.mul(column, INT(self.size))))


def wide(builder: Any, at: Any, kind: Any) -> Any:
    """`LANES` numbers at an address as fp32, stored as `cpu_scalars.as_float` takes them."""
    stored = {types.uint16: ir.IntType(16), types.int16: ir.IntType(16), types.float32: FLOAT, types.float64: ir.DoubleType()}[kind]
    x = builder.load(builder.inttoptr(at, ir.VectorType(stored, LANES).as_pointer()))
    x.align = kind.bitwidth // 8
    if kind == types.uint16:
        words = ir.VectorType(ir.IntType(32), LANES)
        return builder.bitcast(builder.shl(builder.zext(x, words), ir.Constant(words, [16] * LANES)), VECTOR)
    if kind == types.int16:
        return builder.fpext(builder.bitcast(x, ir.VectorType(ir.HalfType(), LANES)), VECTOR)
    return builder.fptrunc(x, VECTOR) if kind == types.float64 else x


def number(builder: Any, at: Any) -> Any:
    """The fp32 number at an address, in every lane."""
    first = builder.insert_element(ZEROS, builder.load(builder.inttoptr(at, FLOAT.as_pointer())), INT(0))
    return _shuffled(builder, first, first, [0] * LANES)


def store(builder: Any, x: Any, at: Any) -> None:
    """Write fp32 numbers to an address."""
    builder.store(x, builder.inttoptr(at, x.type.as_pointer())).align = 4


def plus_product(builder: Any, total: Any, x: Any, y: Any) -> Any:
    """`total + x y`."""
    return builder.fadd(builder.fmul(x, y, flags=_FUSED), total, flags=_FUSED)


def ask_for(builder: Any, at: Any) -> None:
    """Ask for the cache line at an address, which need not be one of ours."""
    word = ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [_BYTE.as_pointer(), word, word, word])
    ask = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    read, all_levels, data = word(0), word(3), word(1)
    builder.call(ask, [builder.inttoptr(at, _BYTE.as_pointer()), read, all_levels, data])


def four_sums(builder: Any, vectors: Sequence[Any]) -> Any:
    """The sums over the lanes of four vectors, as a vector of four: two steps for all of them, then halves are added."""
    a, b, c, d = vectors
    ab = _added(builder, a, b, [0, LANES, 1, LANES + 1], [2, LANES + 2, 3, LANES + 3])
    cd = _added(builder, c, d, [0, LANES, 1, LANES + 1], [2, LANES + 2, 3, LANES + 3])
    sums = _added(builder, ab, cd, [0, 1, LANES, LANES + 1], [2, 3, LANES + 2, LANES + 3])
    width = LANES
    while width > 4:
        width //= 2
        low, high = list(range(width)), list(range(width, 2 * width))
        sums = builder.fadd(_shuffled(builder, sums, sums, low), _shuffled(builder, sums, sums, high))
    return sums


def _added(builder: Any, x: Any, y: Any, some: list[int], others: list[int]) -> Any:
    """Two choices of lanes of x and y, added; a choice is that of the first four lanes, and alike in every four that follow."""
    spread = [[lane + four for four in range(0, LANES, 4) for lane in choice] for choice in (some, others)]
    return builder.fadd(_shuffled(builder, x, y, spread[0]), _shuffled(builder, x, y, spread[1]))


def _shuffled(builder: Any, x: Any, y: Any, lanes: list[int]) -> Any:
    return builder.shuffle_vector(x, y, ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes))
