"""Words of at most 32 bits to entries in vector registers: digits by products with inverses, points in bytes.

Compiled by Numba.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .e8 import LANES
from .instructions import has
from .lanes import byte_rows, joined, neighbours, part_of, splat, upper_product
from .points import MOST_SIDE, points
from .square import constant, put

MOST_BITS = 32  # of a word
_WORD, _INT, _SHORT, _BYTE = (ir.IntType(bits) for bits in (64, 32, 16, 8))
_FLOAT = ir.FloatType()


def _tables() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What divides by q⁴ and by q: 2³²/q⁴, and for numbers below q⁴ a product's upper half and a shift."""
    inverse, factor, shift = (np.zeros(MOST_SIDE + 1, np.int64) for _ in range(3))
    for q in range(2, MOST_SIDE + 1):
        inverse[q] = (1 << MOST_BITS) // q**4
        shift[q] = (q - 1).bit_length() - 1
        factor[q] = -(-(1 << 16 + int(shift[q])) // q)
    return inverse, factor, shift


INVERSE, FACTOR, SHIFT = _tables()


@intrinsic
def decode_in_bytes(typingctx, words, stride, q, inverse, factor, shift, multipliers, k, work):  # type: ignore[no-untyped-def]
    """Words to entries.

    Args:
        words: address of the first of LANES words, whose upper bytes need not be there.
        stride: bytes from a word to the next.
        q: nesting ratio, at most MOST_SIDE.
        inverse, factor, shift: of q, from the tables.
        multipliers: address of k float32.
        k: how many.
        work: address of eight rows of LANES float32, filled.
    """

    def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        *known, multipliers, k, work = arguments
        for first, rows, indices in _tiles(context, builder, *known):
            side = indices[0].type.count
            factors = _chosen(builder, indices, multipliers, k)
            for i, row in enumerate(rows):
                target = builder.add(work, _WORD(4 * (i * LANES + first)))
                for j, m in enumerate(factors):
                    part = builder.sext(part_of(builder, row, side * j, side), indices[0].type)
                    value = builder.fmul(builder.sitofp(part, m.type), m)
                    put(builder, value, builder.add(target, _WORD(4 * side * j)))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 9), codegen


@intrinsic
def decode_to_int8(typingctx, words, stride, q, inverse, factor, shift, multipliers, k, out):  # type: ignore[no-untyped-def]
    """As `decode_in_bytes`, to (LANES, 8) int8 at the address `out`."""

    def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        *known, multipliers, k, out = arguments
        for first, rows, indices in _tiles(context, builder, *known):
            ints, bytes_of = indices[0].type, ir.VectorType(_BYTE, indices[0].type.count)
            factors = [builder.fptosi(m, ints) for m in _chosen(builder, indices, multipliers, k)]
            factor = joined(builder, [builder.trunc(m, bytes_of) for m in factors])
            pieces = neighbours(builder, [builder.mul(row, factor) for row in rows])
            for i, piece in enumerate(pieces):
                put(builder, piece, builder.add(out, _WORD(8 * first + 16 * i)))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 9), codegen


def _tiles(
    context: Any, builder: Any, words: Any, stride: Any, q: Any, inverse: Any, factor: Any, shift: Any
) -> Iterator[Any]:
    """The blocks of a tile that fit registers together: the first one, eight rows of u, and vectors of indices."""
    gathers = has(context, ("avx512f", "avx512bw"))
    side = 16 if gathers else 8
    for first in range(0, LANES, 4 * side):
        places = [builder.add(words, builder.mul(stride, _WORD(first + side * i))) for i in range(4)]
        found = [(_gathered if gathers else _read)(builder, place, stride, side) for place in places]
        divided = [_divided(builder, each, q, inverse) for each in found]
        digits = _digits(builder, [pair for pair, _ in divided], q, factor, shift)
        yield first, points(builder, digits, q), [index for _, index in divided]


def _gathered(builder: Any, place: Any, stride: Any, side: int) -> Any:
    """Numbers of four bytes, `stride` bytes apart, by the instruction of AVX-512."""
    ints, pointer = ir.VectorType(_INT, side), _BYTE.as_pointer()
    bits = ir.VectorType(ir.IntType(1), side)
    steps = builder.mul(splat(builder, stride, ints), ir.Constant(ints, list(range(side))))
    of = ir.FunctionType(ints, [ints, pointer, ints, bits, _INT])
    gather = builder.module.declare_intrinsic("llvm.x86.avx512.mask.gather.dpi.512", (), of)
    all_of_them = ir.Constant(bits, [1] * side)
    return builder.call(gather, [constant(ints, 0), builder.inttoptr(place, pointer), steps, all_of_them, _INT(1)])


def _read(builder: Any, place: Any, stride: Any, side: int) -> Any:
    found = ir.Constant(ir.VectorType(_INT, side), ir.Undefined)
    for lane in range(side):
        at = builder.inttoptr(builder.add(place, builder.mul(stride, _WORD(lane))), _INT.as_pointer())
        found = builder.insert_element(found, builder.load(at, align=1), _INT(lane))
    return found


def _divided(builder: Any, words: Any, q: Any, inverse: Any) -> tuple[Any, Any]:
    """The number of four digits, and of the next four in the upper half; the index."""
    square = builder.mul(q, q)
    divisor, inverse = (splat(builder, value, words.type) for value in (builder.mul(square, square), inverse))
    rest, low = _divide(builder, words, divisor, inverse)
    index, high = _divide(builder, rest, divisor, inverse)
    return builder.or_(low, builder.shl(high, constant(words.type, 16))), index


def _divide(builder: Any, number: Any, divisor: Any, inverse: Any) -> tuple[Any, Any]:
    """Quotient and remainder; the product with the inverse, which is rounded down, is the quotient or one less."""
    quotient = upper_product(builder, number, inverse)
    rest = builder.sub(number, builder.mul(quotient, divisor))
    more = builder.icmp_unsigned(">=", rest, divisor)
    quotient = builder.add(quotient, builder.zext(more, quotient.type))
    return quotient, builder.select(more, builder.sub(rest, divisor), rest)


def _digits(builder: Any, pairs: list[Any], q: Any, factor: Any, shift: Any) -> list[Any]:
    """Eight rows of digits from numbers of four digits, two in 32 bits."""
    shorts = ir.VectorType(_SHORT, 2 * pairs[0].type.count)
    side, factor, shift = (splat(builder, value, shorts) for value in (q, factor, shift))
    eight = constant(shorts, 8)
    halves: tuple[list[Any], list[Any]] = [], []
    for numbers in pairs:
        rest, found = builder.bitcast(numbers, shorts), []
        for _ in range(3):
            upper = builder.lshr(upper_product(builder, rest, factor), shift)
            found.append(builder.sub(rest, builder.mul(upper, side)))
            rest = upper
        found.append(rest)
        for part, i in zip(halves, (0, 2), strict=True):
            both = builder.or_(found[i], builder.shl(found[i + 1], eight))
            part.append(builder.bitcast(both, numbers.type))
    (d0, d1, d4, d5), (d2, d3, d6, d7) = (byte_rows(builder, part) for part in halves)
    return [d0, d1, d2, d3, d4, d5, d6, d7]


def _chosen(builder: Any, indices: list[Any], multipliers: Any, k: Any) -> list[Any]:
    """The multiplier of each index, the last one for an index that is too large."""
    floats, ints = ir.VectorType(_FLOAT, indices[0].type.count), indices[0].type
    table = builder.inttoptr(multipliers, _FLOAT.as_pointer())
    held = [cgutils.alloca_once_value(builder, splat(builder, builder.load(table), floats)) for _ in indices]
    with cgutils.for_range(builder, builder.sub(k, _WORD(1))) as loop:
        i = builder.add(loop.index, _WORD(1))
        m = splat(builder, builder.load(builder.gep(table, [i])), floats)
        least = splat(builder, i, ints)
        for place, index in zip(held, indices, strict=True):
            reached = builder.icmp_unsigned(">=", index, least)
            builder.store(builder.select(reached, m, builder.load(place)), place)
    return [builder.load(place) for place in held]
