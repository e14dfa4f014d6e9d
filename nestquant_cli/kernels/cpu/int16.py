"""Tokens as integers of 16 bits with a scale each, in two digits of 8 bits, laid out for `amx`. Compiled by Numba.

x ≈ scale·(256·high + low), both digits int8. Sixteen tokens make a tile: for each digit, and for four neighbouring
coordinates at a time, the bytes of one token after another.
"""

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic

from ..contract.constants import LARGEST_INT16, LEAST_SIZE
from .amx import TOKENS
from .e8 import OPTIONS, ZERO
from .jit import njit
from .pointers import int8_at
from .rotate import WORK
from .single import nearest_product
from .square import FLOATS, INTS, LINE, constant, put, vector
from .threads import team_loop
from .tile_rows import load_rows
from .tokens import load_rotated, rotate_one

_LEVELS, _LEAST = np.float32(LARGEST_INT16), np.float32(LEAST_SIZE)
_NAN = np.float32(np.nan)
_NOT_FINITE = 0x7F800000  # bits of a float32 from here on
_MAGNITUDE = np.int32(0x7FFFFFFF)  # bits of a float32's magnitude, in the order of magnitudes
_GROUP = 4  # coordinates whose bytes lie together
_WORD = ir.IntType(64)


@team_loop
def round_rotated(wide, narrow, plan, digits, scale, start, stop):
    """Rotates and rounds the tokens start … stop; start is a multiple of 16.

    Args:
        wide, narrow, plan: as in `tokens.rotate`.
        digits: (tiles, 2, groups·16) int32, filled; groups of four coordinates, a multiple of 16 of them.
        scale: (tokens,) float32, filled.
    """
    order = plan[0].shape[0]
    tile = np.empty(order * TOKENS, np.float32)
    work = np.zeros(WORK, np.float32)
    for first in range(start, stop, TOKENS):
        count = min(TOKENS, stop - first)
        load_rotated(wide, narrow, first, count, plan, tile, work)
        round_tile(tile, order, digits[first // TOKENS], scale[first : first + count])


@team_loop
def round_rows(x, taken, first_of, digits, scale, start, stop):
    """Rounds the tokens of the tiles start … stop.

    Args:
        x: (tokens, order) float32, rotated.
        taken: (pairs,) int64, the token of each pair.
        first_of: (tiles + 1,) int64, the first pair of each tile; at most 16 belong to it.
        digits: as in `round_rotated`.
        scale: (pairs,) float32, filled.
    """
    order = x.shape[1]
    tile, ones = np.empty(order * TOKENS, np.float32), np.ones(order, np.float32)
    places = np.empty(TOKENS, np.int64)
    for each in range(start, stop):
        first, count = first_of[each], first_of[each + 1] - first_of[each]
        for lane in range(TOKENS):
            places[lane] = x.ctypes.data + taken[first + min(lane, count - 1)] * x.strides[0]
        load_rows(places, False, ones, tile, order)
        round_tile(tile, order, digits[each], scale[first : first + count])


@njit(**OPTIONS)
def round_tile(tile, order, digits, scale):
    """Rounds a tile of rotated tokens.

    Args:
        tile: (order·16,) float32, coordinate i of the token in a lane at tile[16·i + lane].
        order: coordinates of a token, a multiple of 8.
        digits: (2, groups·16) int32, filled; what is beyond the order becomes zeros.
        scale: (tokens,) float32, filled: not a number for a token that is not finite, whose digits are zeros.
    """
    largest = np.empty(TOKENS, np.int32)
    largest_of_tile(tile.ctypes.data, order, largest.ctypes.data)
    sizes = largest.view(np.float32)
    factor = np.empty(TOKENS, np.float32)
    for lane in range(TOKENS):
        factor[lane], size = _factor_and_scale(largest[lane], sizes[lane])
        if lane < scale.shape[0]:
            scale[lane] = size
    digits[:, order * TOKENS // _GROUP :] = 0
    for lane in range(TOKENS):
        if factor[lane] == ZERO:  # what is not finite must not be converted to an integer
            for i in range(order):
                tile[i * TOKENS + lane] = ZERO
    for group in range(order // _GROUP):
        at = group * LINE
        high, low = digits[0].ctypes.data + at, digits[1].ctypes.data + at
        _split(tile.ctypes.data + _GROUP * at, factor.ctypes.data, high, low)


@njit(**OPTIONS)
def round_few(narrow, plan, digits, scale):
    """Rotates and rounds a few tokens one by one, to what `round_rotated` makes of them among others, to the bit.

    Args:
        narrow, plan: as in `tokens.rotate`.
        digits: (tokens, 2, groups) int32, filled, groups as in `round_rotated`.
        scale: (tokens,) float32, filled.
    """
    order = plan[0].shape[0]
    wide, work = np.empty((0, 0), np.float32), np.zeros(WORK, np.float32)
    row, other = np.empty(order, np.float32), np.empty(order, np.float32)
    one = np.empty(1, np.float32)
    for token in range(narrow.shape[0]):
        rotate_one(wide, narrow, token, plan, row, work, other)
        largest = largest_of_row(row.view(np.int32))
        one.view(np.int32)[0] = largest
        factor, scale[token] = _factor_and_scale(largest, one[0])
        lines = digits[token]
        lines[:, order // _GROUP :] = 0
        if factor == ZERO:
            lines[:] = 0
        else:
            _split_row(row, factor, lines[0].ctypes.data, lines[1].ctypes.data)


@njit(**OPTIONS)
def _factor_and_scale(largest, size):
    """What a token is multiplied with before it is rounded, 0 where it becomes zeros, and its scale."""
    if largest >= _NOT_FINITE:
        return ZERO, _NAN
    return (_LEVELS / size, size / _LEVELS) if size >= _LEAST else (ZERO, ZERO)


@njit(**OPTIONS)
def _split_row(row, factor, high, low):
    """A row times a factor to its digits, bytes at two addresses."""
    upper, lower = carray(int8_at(high), (row.shape[0],)), carray(int8_at(low), (row.shape[0],))
    for i in range(row.shape[0]):
        whole = np.int32(nearest_product(row[i], factor))
        upper[i] = np.int8(np.int32(whole + np.int32(128)) >> 8)
        lower[i] = np.int8(whole)


@njit(**OPTIONS)
def largest_of_row(bits):
    """The largest magnitude's bits, of the bits of float32; infinity and what is no number are beyond all."""
    found = np.int32(0)
    for i in range(bits.shape[0]):
        size = np.int32(bits[i] & _MAGNITUDE)
        found = size if size > found else found
    return found


@intrinsic
def largest_of_tile(typingctx, tile, order, target):
    """The bits of the largest magnitude of each token of a tile; infinity and what is no number are beyond all."""

    def codegen(context, builder, signature, arguments):
        tile, order, target = arguments
        held = cgutils.alloca_once_value(builder, ir.Constant(INTS, None))
        with cgutils.for_range(builder, order) as loop:
            bits = vector(builder, builder.add(tile, builder.mul(loop.index, _WORD(LINE))), INTS)
            size, most = builder.and_(bits, constant(INTS, 0x7FFFFFFF)), builder.load(held)
            builder.store(builder.select(builder.icmp_signed(">", size, most), size, most), held)
        put(builder, builder.load(held), target)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3), codegen


@intrinsic
def _split(typingctx, tile, factor, high, low):
    """Four coordinates of 16 tokens, times the factors, to their digits: one word of four bytes for each token."""

    def codegen(context, builder, signature, arguments):
        tile, factor, high, low = arguments
        nearest = builder.module.declare_intrinsic("llvm.rint.v16f32", (), ir.FunctionType(FLOATS, [FLOATS]))
        size = vector(builder, factor, FLOATS)
        words = [constant(INTS, 0), constant(INTS, 0)]
        for place in range(_GROUP):
            value = builder.fmul(vector(builder, builder.add(tile, _WORD(place * LINE)), FLOATS), size)
            whole = builder.fptosi(builder.call(nearest, [value]), INTS)
            upper = builder.ashr(builder.add(whole, constant(INTS, 128)), constant(INTS, 8))
            for digit, held in enumerate((upper, whole)):  # the lowest byte of each is the digit
                byte = builder.shl(builder.and_(held, constant(INTS, 255)), constant(INTS, 8 * place))
                words[digit] = builder.or_(words[digit], byte)
        put(builder, words[0], high)
        put(builder, words[1], low)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), codegen
