"""Squares of 16 × 16 numbers of 32 bits, transposed in registers: 64 instructions with AVX-512. Compiled by Numba.

They are written as vectors. In loops LLVM finds too few of them: what `finish` does took four times as long.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .instructions import has
from .single import emit_separate

SIDE = 16
LINE = 4 * SIDE  # bytes of a row
_QUAD = 4  # numbers that instructions move together from one vector to another
_INT, _FLOAT, _WORD, _SHORT = ir.IntType(32), ir.FloatType(), ir.IntType(64), ir.IntType(16)
INTS, FLOATS = ir.VectorType(_INT, SIDE), ir.VectorType(_FLOAT, SIDE)


@intrinsic(prefer_literal=True)
def columns(typingctx, rows, offset, scale, target, narrow):
    """The columns of SIDE rows, each times its scale, as lines of float32 one after another.

    Args:
        rows: address of the addresses of the rows, (SIDE,) int64.
        offset: bytes to add to each of these.
        scale: address of the SIDE scales.
        target: address of the first line.
        narrow: 1 for rows of bfloat16, 0 for float32; known when it is compiled.
    """

    def codegen(context, builder, signature, arguments):
        rows, offset, scale, target, _ = arguments
        narrow = signature.args[4].literal_value
        places = _places(builder, rows, offset)
        for lanes, part, side in _parts(context):
            of = ir.VectorType(_SHORT if narrow else _FLOAT, side)
            shift = _WORD(part * (2 if narrow else 4))
            found = [vector(builder, builder.add(places[lanes + i], shift), of) for i in range(side)]
            factors = vector(builder, builder.add(scale, _WORD(4 * part)), ir.VectorType(_FLOAT, side))
            found = [_widened(builder, values) if narrow else values for values in found]
            for i, values in enumerate(transposed(builder, found)):
                factor = builder.shuffle_vector(factors, factors, constant(ir.VectorType(_INT, side), i))
                place = builder.add(target, _WORD((part + i) * LINE + 4 * lanes))
                put(builder, builder.fmul(values, factor), place)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4, narrow), codegen


@intrinsic(prefer_literal=True)
def rows(typingctx, lines, targets, offset, narrow):
    """The inverse of `columns`, without scales: SIDE lines to SIDE rows.

    Args:
        lines: address of the first line.
        targets: address of the addresses of the rows, (SIDE,) int64.
        offset: bytes to add to each of these.
        narrow: 1 for rows of bfloat16, 0 for float32; known when it is compiled.
    """

    def codegen(context, builder, signature, arguments):
        lines, targets, offset, _ = arguments
        narrow = signature.args[3].literal_value
        places = _places(builder, targets, offset)
        for lanes, part, side in _parts(context):
            of = ir.VectorType(_FLOAT, side)
            starts = [builder.add(lines, _WORD((part + i) * LINE + 4 * lanes)) for i in range(side)]
            for i, values in enumerate(transposed(builder, [vector(builder, start, of) for start in starts])):
                place = builder.add(places[lanes + i], _WORD(part * (2 if narrow else 4)))
                put(builder, _bfloat16(builder, values) if narrow else values, place)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3, narrow), codegen


@intrinsic(prefer_literal=True)
def finish(typingctx, high, low, of_tokens, of_rows, more, target, stride, narrow):
    """((256·high + low)·(scale of the token) + centered·shift)·(scale of the row) + bias of SIDE rows and SIDE tokens.

    Args:
        high, low: addresses of (rows, tokens) int32.
        of_tokens, of_rows: addresses of SIDE float32.
        more: addresses of SIDE float32 each: centered, 0 or 1 for a token, shift and bias of the rows; or nothing.
        target: address of what is filled, for each token the rows one after another.
        stride: bytes from a token to the next.
        narrow: 1 for bfloat16, 0 for float32; known when it is compiled.
    """

    def codegen(context, builder, signature, arguments):
        high, low, of_tokens, of_rows, more, target, stride, _ = arguments
        base, token, row = constant(FLOATS, 256.0), vector(builder, of_tokens, FLOATS), vector(builder, of_rows, FLOATS)
        further = cgutils.unpack_tuple(builder, more)
        if further:
            centered, shift, bias = (vector(builder, place, FLOATS) for place in further)
        values = []
        for i in range(SIDE):
            places = [builder.add(each, _WORD(i * LINE)) for each in (high, low)]
            upper, lower = (builder.sitofp(vector(builder, place, INTS), FLOATS) for place in places)
            values.append(emit_separate(builder, builder.fmul(builder.fadd(builder.fmul(upper, base), lower), token)))
        for i, value in enumerate(transposed(builder, values)):
            if further:
                mark = builder.shuffle_vector(centered, centered, constant(INTS, i))
                value = builder.fadd(value, builder.fmul(mark, shift))
            scaled = builder.fmul(value, row)
            scaled = builder.fadd(emit_separate(builder, scaled), bias) if further else scaled
            place = builder.add(target, builder.mul(stride, _WORD(i)))
            put(builder, _bfloat16(builder, scaled) if signature.args[7].literal_value else scaled, place)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4, more, *[types.int64] * 2, narrow), codegen


def _places(builder, table, offset):
    """The addresses of a table of SIDE, plus an offset."""
    table = builder.inttoptr(table, _WORD.as_pointer())
    return [builder.add(builder.load(builder.gep(table, [_WORD(i)])), offset) for i in range(SIDE)]


def transposed(builder, rows):
    """The columns of as many vectors as each has numbers: within fours, and then fours as a whole."""
    side = len(rows)
    fours = range(0, side, _QUAD)
    low, high = ([i + j for i in fours for j in (k, side + k, k + 1, side + k + 1)] for k in (0, 2))
    left, right = ([i + j for i in fours for j in (k, k + 1, side + k, side + k + 1)] for k in (0, 2))
    found = []
    for i in fours:
        a, b, c, d = (
            _mixed(builder, *rows[i + j : i + j + 2], lanes) for j, lanes in ((0, low), (0, high), (2, low), (2, high))
        )
        found.append([_mixed(builder, *pair, lanes) for pair in ((a, c), (b, d)) for lanes in (left, right)])
    step = 1
    while step < len(found):
        found = _swapped(builder, found, step)
        step *= 2
    return [values for four in found for values in four]


def _swapped(builder, fours, step):
    """Fours of the vectors i and i + step, where the number of a four has the bit `step`: each to the other's place."""
    side, done = _QUAD * len(fours), list(fours)
    for i in range(len(fours)):
        if not i & step:
            for j, of in ((i, 0), (i + step, step)):
                lanes = []
                for four in range(len(fours)):
                    first = four & ~step | of
                    lanes += [(side if four & step else 0) + _QUAD * first + k for k in range(_QUAD)]
                done[j] = [_mixed(builder, *pair, lanes) for pair in zip(fours[i], fours[i + step], strict=True)]
    return done


def _mixed(builder, first, second, lanes):
    return builder.shuffle_vector(first, second, ir.Constant(ir.VectorType(_INT, len(lanes)), lanes))


def _parts(context):
    """(first lane, first column, side) of the squares that fit the registers."""
    side = SIDE if has(context, ("avx512f",)) else SIDE // 2
    return [(lanes, part, side) for lanes in range(0, SIDE, side) for part in range(0, SIDE, side)]


def vector(builder, address, of):
    """The vector at an address."""
    return builder.load(builder.inttoptr(address, of.as_pointer()), align=1)


def put(builder, values, address):
    """Writes a vector to an address."""
    builder.store(values, builder.inttoptr(address, values.type.as_pointer()), align=1)


def constant(of, value):
    """A vector of one value."""
    return ir.Constant(of, [value] * of.count)


def _widened(builder, values):
    """Bits of bfloat16 as float32."""
    ints = ir.VectorType(_INT, values.type.count)
    bits = builder.shl(builder.zext(values, ints), constant(ints, 16))
    return builder.bitcast(bits, ir.VectorType(_FLOAT, values.type.count))


def _bfloat16(builder, values):
    """The bits of the nearest bfloat16, ties to even."""
    ints = ir.VectorType(_INT, values.type.count)
    bits = builder.bitcast(values, ints)
    odd = builder.and_(builder.lshr(bits, constant(ints, 16)), constant(ints, 1))
    bits = builder.lshr(builder.add(bits, builder.add(odd, constant(ints, 0x7FFF))), constant(ints, 16))
    return builder.trunc(bits, ir.VectorType(_SHORT, values.type.count))
