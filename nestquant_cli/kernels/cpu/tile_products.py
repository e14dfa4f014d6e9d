"""Products of a tile of decoded blocks with a few queries, and its sums under a few weights, in vectors of 16 lanes.

A tile is eight rows of LANES float32, entry i of the block in a lane is in row i (see `e8`). LLVM's vectorizer makes
two loops of one, for arrays that overlap and others; here every sum has one order. Compiled by Numba.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .e8 import LANES
from .lanes import splat
from .square import FLOATS, SIDE, put, vector

BLOCK_SUMS = 8 * SIDE  # partial sums of a block

_FLOAT, _INT, _WORD = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_PARTS = LANES // SIDE


@intrinsic
def add_products(typingctx, queries, stride, count, work, sums):  # type: ignore[no-untyped-def]
    """Adds the products of `count` queries with all blocks.

    Args:
        queries: address of the eight float32 of the first query that meet the blocks.
        stride: bytes from a query to the next.
        count: how many.
        work: address of the tile.
        sums: address of (count, LANES) float32.
    """

    def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        queries, stride, count, work, sums = arguments
        with cgutils.for_range(builder, count) as loop:
            query = builder.add(queries, builder.mul(loop.index, stride))
            entries = [_spread(builder, builder.add(query, _WORD(4 * i))) for i in range(8)]
            total = builder.add(sums, builder.mul(loop.index, _WORD(4 * LANES)))
            for part in range(_PARTS):
                rows = [_row(builder, work, i, part) for i in range(8)]
                _accumulate(builder, builder.add(total, _WORD(4 * SIDE * part)), entries, rows)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), codegen


@intrinsic
def add_weighted(typingctx, weights, stride, count, work, sums):  # type: ignore[no-untyped-def]
    """Adds the blocks under `count` weights each to partial sums.

    Args:
        weights: address of the LANES float32 of the first query.
        stride: bytes from these to the next.
        count: how many.
        work: address of the tile.
        sums: address of (count, BLOCK_SUMS) float32, SIDE for each entry of a block.
    """

    def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        weights, stride, count, work, sums = arguments
        with cgutils.for_range(builder, count) as loop:
            start = builder.add(weights, builder.mul(loop.index, stride))
            factors = [vector(builder, builder.add(start, _WORD(4 * SIDE * part)), FLOATS) for part in range(_PARTS)]
            total = builder.add(sums, builder.mul(loop.index, _WORD(4 * BLOCK_SUMS)))
            for i in range(8):
                rows = [_row(builder, work, i, part) for part in range(_PARTS)]
                _accumulate(builder, builder.add(total, _WORD(4 * SIDE * i)), factors, rows)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), codegen


@intrinsic
def folded(typingctx, sums, count, out, stride):  # type: ignore[no-untyped-def]
    """Adds up the partial sums of `add_weighted`.

    Args:
        sums: address of (count, BLOCK_SUMS) float32.
        count: how many.
        out: address of the eight float32 of the first one, filled.
        stride: bytes from these to the next.
    """

    def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        sums, count, out, stride = arguments
        with cgutils.for_range(builder, count) as loop:
            total = builder.add(sums, builder.mul(loop.index, _WORD(4 * BLOCK_SUMS)))
            target = builder.add(out, builder.mul(loop.index, stride))
            for i in range(8):
                value = vector(builder, builder.add(total, _WORD(4 * SIDE * i)), FLOATS)
                while value.type.count > 1:
                    half = value.type.count // 2
                    low, high = (
                        ir.Constant(ir.VectorType(_INT, half), list(range(first, first + half))) for first in (0, half)
                    )
                    value = builder.fadd(
                        builder.shuffle_vector(value, value, low), builder.shuffle_vector(value, value, high)
                    )
                put(builder, builder.extract_element(value, _INT(0)), builder.add(target, _WORD(4 * i)))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), codegen


def _row(builder: Any, work: Any, i: int, part: int) -> Any:
    return vector(builder, builder.add(work, _WORD(4 * (i * LANES + SIDE * part))), FLOATS)


def _accumulate(builder: Any, place: Any, factors: list[Any], rows: list[Any]) -> None:
    """Adds factor · row of each pair to the vector at an address, in this order."""
    value = vector(builder, place, FLOATS)
    of = ir.FunctionType(FLOATS, [FLOATS] * 3)
    in_one = builder.module.declare_intrinsic(f"llvm.fmuladd.v{SIDE}f32", (), of)  # where there is an instruction
    for factor, row in zip(factors, rows, strict=True):
        value = builder.call(in_one, [factor, row, value])
    put(builder, value, place)


def _spread(builder: Any, address: Any) -> Any:
    """The float32 at an address, in all lanes."""
    return splat(builder, builder.load(builder.inttoptr(address, _FLOAT.as_pointer()), align=4), FLOATS)
