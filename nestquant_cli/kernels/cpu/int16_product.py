"""Int8 rows times tokens of 16 bits, of one matrix or of many experts, each where it lies. Compiled by Numba.

Blocks of 32 rows meet tiles of 16 tokens; what is summed up is exact. A processor with AMX multiplies 1,024 pairs of
bytes a cycle, two for each weight and token: as fast as bfloat16, but a matrix is read at one byte a weight and never
converted. With VNNI it is 128.
"""

import numpy as np
from numba import carray

from .amx import CONFIG, ROWS, STEP, TOKENS, amx_sums, amx_sums_of_one, configure, configured, shapes
from .e8 import OPTIONS, ZERO
from .instructions import AMX, VNNI
from .jit import njit
from .pointers import int8_at, uint16_at
from .square import LINE, SIDE, finish
from .threads import team_loop
from .vnni import plain_sums, vnni_sums

_TOGETHER = 4  # blocks of rows that a tile of tokens meets while it is in the cache
_SHAPES = shapes()


@team_loop
def multiply_blocks(digits, scale, more, first_of, tiles, addresses, rows, order, kind, out, out_narrow, start, stop):
    """The items start … stop; item expert·blocks + block is a block of rows of an expert.

    Args:
        digits: (tiles, 2, groups·16) int32, as `int16` writes them; with AMX (tiles, 1, …) where the higher is zero.
        scale: (pairs,) float32, of the token of each pair.
        more: float32 of one matrix as in `finish`: centered (pairs,), 0 or 1, shift and bias (rows,). Or all are empty.
        first_of: (tiles + 1,) int64, the first pair of each tile.
        tiles: (experts + 1,) int64, the first tile of each expert.
        addresses: (experts, 2) int64, of the int8 rows and of their scales, the bits of bfloat16.
        rows: rows of each expert.
        order: entries of a row.
        kind: the instructions, of `instructions`.
        out, out_narrow: (pairs, rows) float32 or the bits of bfloat16 (uint16); the other one has no rows.
    """
    blocks = -(-rows // ROWS)
    before = np.empty(CONFIG, np.uint8)
    if kind == AMX:
        configured(before.ctypes.data)
        configure(_SHAPES.ctypes.data)
    places = np.empty((_TOGETHER, 3), np.int64)
    room = np.empty((_TOGETHER, digits.shape[2] // (TOKENS * TOKENS) * STEP * ROWS), np.int8)
    sums = np.zeros((3, ROWS, TOKENS), np.int32)  # the last stay zeros: the higher digit of tokens with one
    of_rows, of_tokens = np.zeros((3, _TOGETHER, ROWS), np.float32), np.empty((2, 2, TOKENS), np.float32)
    further = more[1].shape[0] > 0
    work = np.empty((TOKENS, ROWS), np.float32)
    narrow = out.shape[0] == 0
    target, stride, size = out.ctypes.data, out.strides[0], 4
    if narrow:
        target, stride, size = out_narrow.ctypes.data, out_narrow.strides[0], 2
    one = digits.shape[1] == 1
    pair = 2 if one else 1  # tiles that meet a block together
    item = start
    while item < stop:
        expert = item // blocks
        first = item - expert * blocks
        last = min(first + _TOGETHER, blocks, first + stop - item)
        for block in range(first, last):
            held = min(ROWS, rows - block * ROWS)
            at = addresses[expert, 0] + block * ROWS * order
            _place(at, held, order, kind, room[block - first], places[block - first])
            _widen(addresses[expert, 1] + 2 * block * ROWS, held, of_rows[0, block - first])
            if further:
                for i in range(held):
                    of_rows[1, block - first, i] = more[1][block * ROWS + i]
                    of_rows[2, block - first, i] = more[2][block * ROWS + i]
        for tile in range(tiles[expert], tiles[expert + 1], pair):
            here = min(pair, tiles[expert + 1] - tile)
            for each in range(here):
                _take(scale, first_of[tile + each], first_of[tile + each + 1], of_tokens[0, each])
                if further:
                    _take(more[0], first_of[tile + each], first_of[tile + each + 1], of_tokens[1, each])
            of_digits = digits.ctypes.data + tile * digits.strides[0], digits.shape[2] // (TOKENS * TOKENS)
            ahead = tile == tiles[expert]  # later the rows are in the cache
            for block in range(first, last):
                held = min(ROWS, rows - block * ROWS)
                _sums(places[block - first], held, of_digits, one and here == 1, order, kind, ahead, sums)
                for each in range(here):
                    begin = first_of[tile + each]
                    digit = sums.ctypes.data, sums.ctypes.data + ROWS * LINE
                    if one:
                        digit = sums.ctypes.data + 2 * ROWS * LINE, sums.ctypes.data + each * ROWS * LINE
                    factors = of_tokens.ctypes.data + each * LINE, of_rows.ctypes.data + (block - first) * ROWS * 4
                    place = target + begin * stride + block * ROWS * size
                    count = first_of[tile + each + 1] - begin
                    if count == TOKENS and held == ROWS:
                        _write(digit, factors, further, ROWS, place, stride, narrow)
                    else:
                        lines = work.ctypes.data, ROWS * size
                        _write(digit, factors, further, held, lines[0], lines[1], narrow)
                        _copy(lines, count, held * size, place, stride)
        item += last - first
    if kind == AMX:
        configure(before.ctypes.data)


@njit(**OPTIONS)
def _place(address, held, order, kind, room, place):
    """Fills in address, bytes from row to row and from step to step of a block.

    Instructions of AMX read whole tiles: a block without as many rows, or without whole steps, goes to the room.
    """
    place[0], place[1], place[2] = address, order, STEP
    if kind == AMX and (held < ROWS or order % STEP):
        rows = carray(int8_at(address), (held, order))
        tiles = room.reshape(room.shape[0] // (STEP * ROWS), ROWS, STEP)
        for row in range(held):
            for i in range(0, order, 8):
                tiles[i // STEP, row, i % STEP : i % STEP + 8] = rows[row, i : i + 8]
        place[0], place[1], place[2] = room.ctypes.data, STEP, STEP * ROWS


@njit(**OPTIONS)
def _sums(place, held, digits, single, order, kind, ahead, sums):
    """Sums of a block with a tile of two digits, or with one or two tiles of one digit: the first of `sums`."""
    tokens, steps = digits
    target = sums.ctypes.data
    if kind == AMX and single:
        amx_sums_of_one(place[0], place[1], place[2], tokens, steps, ahead, target)
    elif kind == AMX:
        amx_sums(place[0], place[1], place[2], tokens, steps, ahead, target)
    elif kind == VNNI:
        vnni_sums(place[0], place[1], held, tokens, steps, order, target)
    else:
        plain_sums(place[0], place[1], held, tokens, steps, order, target)


@njit(**OPTIONS)
def _widen(address, held, of_rows):
    """Scales of rows, bits of bfloat16 at an address, as float32."""
    scales, bits = carray(uint16_at(address), (held,)), of_rows.view(np.int32)
    for i in range(held):
        bits[i] = np.int32(scales[i]) << 16


@njit(**OPTIONS)
def _take(scale, begin, end, of_tokens):
    """The scales of a tile's tokens, and zeros for those that it lacks."""
    for lane in range(TOKENS):
        of_tokens[lane] = scale[begin + lane] if begin + lane < end else ZERO


@njit(**OPTIONS)
def _write(digit, factors, further, held, place, stride, narrow):
    """Sums of a block times the scales of its tokens and rows.

    Args:
        digit: addresses of (ROWS, TOKENS) int32, the sums of each digit.
        factors: addresses of the scales of tokens and of rows, float32; those of centered, shift and bias follow.
        further: whether there are these.
        held: how many rows there are, rounded up to SIDE.
        place: address of what is filled: for each of TOKENS tokens the rows one after another.
        stride: bytes from a token to the next.
        narrow: whether it is bfloat16, else float32.
    """
    for first in range(0, held, SIDE):
        high, low = digit[0] + first * LINE, digit[1] + first * LINE
        token, row = factors[0], factors[1] + first * 4
        more = token + 2 * LINE, row + _TOGETHER * ROWS * 4, row + 2 * _TOGETHER * ROWS * 4
        if narrow and further:
            finish(high, low, token, row, more, place + first * 2, stride, 1)
        elif narrow:
            finish(high, low, token, row, (), place + first * 2, stride, 1)
        elif further:
            finish(high, low, token, row, more, place + first * 4, stride, 0)
        else:
            finish(high, low, token, row, (), place + first * 4, stride, 0)


@njit(**OPTIONS)
def _copy(lines, count, length, place, stride):
    """`count` lines of `length` bytes from one address and stride to others."""
    for line in range(count):
        source, target = carray(int8_at(lines[0] + line * lines[1]), (length,)), carray(int8_at(place), (length,))
        for i in range(length):
            target[i] = source[i]
        place += stride
