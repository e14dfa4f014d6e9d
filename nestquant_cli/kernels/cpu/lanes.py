"""Vectors of integers in LLVM's language, for loops that its vectorizer does not find. For every processor.

LLVM splits a vector that is wider than the registers.
"""

from typing import Any

from llvmlite import ir

_INT = ir.IntType(32)
_QUARTER = 16  # bytes within which shuffles are cheapest, on any processor
_FOUR = 4


def splat(builder: Any, value: Any, of: Any) -> Any:
    """A vector with one number in all lanes; a wider integer is cut to their width."""
    lane = value if value.type == of.element else builder.trunc(value, of.element)
    nothing = ir.Constant(of, ir.Undefined)
    first = builder.insert_element(nothing, lane, _INT(0))
    return builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(_INT, of.count), None))


def of_two(builder: Any, name: str, a: Any, b: Any) -> Any:
    """ "umin" or "umax" of two vectors."""
    of = a.type
    function = builder.module.declare_intrinsic(
        f"llvm.{name}.v{of.count}i{of.element.width}", (), _function(of, of, of)
    )
    return builder.call(function, [a, b])


def absolute(builder: Any, a: Any) -> Any:
    """|a| of signed lanes."""
    of = a.type
    name = f"llvm.abs.v{of.count}i{of.element.width}"
    function = builder.module.declare_intrinsic(name, (), _function(of, of, ir.IntType(1)))
    return builder.call(function, [a, ir.IntType(1)(0)])


def upper_product(builder: Any, a: Any, b: Any) -> Any:
    """The upper half of the product of unsigned lanes."""
    width = a.type.element.width
    wide = ir.VectorType(ir.IntType(2 * width), a.type.count)
    product = builder.mul(builder.zext(a, wide), builder.zext(b, wide))
    half = ir.Constant(wide, [width] * wide.count)
    return builder.trunc(builder.lshr(product, half), a.type)


def byte_rows(builder: Any, vectors: list[Any]) -> list[Any]:
    """Four vectors of 4·n bytes as four rows: row i has byte i of every four bytes, in order.

    Args:
        builder: of LLVM's code.
        vectors: of n lanes of 32 bits, n a multiple of 4.
    """
    ints, side = vectors[0].type, vectors[0].type.count
    bytes_of = ir.VectorType(ir.IntType(8), 4 * side)
    within = [_QUARTER * (i // _QUARTER) + _FOUR * (i % _FOUR) + i % _QUARTER // _FOUR for i in range(4 * side)]
    grouped = []
    for values in vectors:
        values = builder.bitcast(values, bytes_of)
        grouped.append(builder.bitcast(_chosen(builder, values, values, within), ints))
    a, b, c, d = grouped
    low, high = ([k + j for k in range(0, side, _FOUR) for j in (i, side + i, i + 1, side + i + 1)] for i in (0, 2))
    left, right = ([k + j for k in range(0, side, _FOUR) for j in (i, i + 1, side + i, side + i + 1)] for i in (0, 2))
    quarters = side // _FOUR
    order = [_FOUR * (i % quarters) + i // quarters for i in range(side)]
    rows = []
    for mixed in (low, high):
        first, second = _chosen(builder, a, b, mixed), _chosen(builder, c, d, mixed)
        for sides in (left, right):
            row = _chosen(builder, first, second, sides)
            rows.append(builder.bitcast(_chosen(builder, row, row, order), bytes_of))
    return rows


def neighbours(builder: Any, rows: list[Any]) -> list[Any]:
    """Eight rows of bytes as vectors of 16: for each two neighbouring lanes the eight bytes of each, in order."""
    halves = []
    for first in (0, 4):
        found = []
        for part in (False, True):
            low, high = (_zipped(builder, rows[i], rows[i + 1], 8, part) for i in (first, first + 2))
            found += [_zipped(builder, low, high, 16, upper) for upper in (False, True)]
        halves.append(found)
    found = [_zipped(builder, a, b, 32, upper) for a, b in zip(*halves, strict=True) for upper in (False, True)]
    starts = range(0, rows[0].type.count, _QUARTER)
    return [part_of(builder, vector, start, _QUARTER) for start in starts for vector in found]


def _zipped(builder: Any, a: Any, b: Any, width: int, high: bool) -> Any:
    """Numbers of two vectors in turns, from the lower or the upper half of every 16 bytes."""
    of = ir.VectorType(ir.IntType(width), a.type.count * 8 // width)
    each = _QUARTER * 8 // width
    begin = each // 2 if high else 0
    lanes = [k + j for k in range(begin, of.count, each) for i in range(each // 2) for j in (i, of.count + i)]
    return builder.bitcast(_chosen(builder, builder.bitcast(a, of), builder.bitcast(b, of), lanes), a.type)


def part_of(builder: Any, a: Any, first: int, count: int) -> Any:
    """`count` lanes of a vector from `first` on."""
    return _chosen(builder, a, a, list(range(first, first + count)))


def joined(builder: Any, parts: list[Any]) -> Any:
    """A power of two of vectors as one."""
    while len(parts) > 1:
        lanes = list(range(2 * parts[0].type.count))
        parts = [_chosen(builder, parts[i], parts[i + 1], lanes) for i in range(0, len(parts), 2)]
    return parts[0]


def _chosen(builder: Any, a: Any, b: Any, lanes: list[int]) -> Any:
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_INT, len(lanes)), lanes))


def _function(result: Any, *takes: Any) -> Any:
    return ir.FunctionType(result, list(takes))
