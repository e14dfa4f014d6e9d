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
def multiply_blocks(digits, scale, first_of, tiles, addresses, rows, order, kind, out, out_narrow, start, stop):
    """The items start … stop; item expert·blocks + block is a block of rows of an expert.

    Args:
        digits: (tiles, 2, groups·16) int32, as `int16` writes them; with AMX (tiles, 1, …) where the higher is zero.
        scale: (pairs,) float32, of the token of each pair.
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
    sums = np.zeros((2, ROWS, TOKENS), np.int32)
    work, work_narrow = np.empty((TOKENS, ROWS), np.float32), np.empty((TOKENS, ROWS), np.uint16)
    factors = np.empty(TOKENS, np.float32), np.empty(ROWS, np.float32)
    item = start
    while item < stop:
        expert = item // blocks
        first = item - expert * blocks
        last = min(first + _TOGETHER, blocks, first + stop - item)
        for block in range(first, last):
            held = min(ROWS, rows - block * ROWS)
            at = addresses[expert, 0] + block * ROWS * order
            _place(at, held, order, kind, room[block - first], places[block - first])
        scales = carray(uint16_at(addresses[expert, 1]), (rows,))
        for tile in range(tiles[expert], tiles[expert + 1]):
            sizes = scale[first_of[tile] : first_of[tile + 1]]
            for block in range(first, last):
                place = places[block - first]
                row = block * ROWS
                held = min(ROWS, rows - row)
                _sums(place, held, digits[tile], order, kind, sums)
                _factors(sizes, scales[row : row + held], factors)
                pair, end = first_of[tile], first_of[tile + 1]
                if out.shape[0]:
                    _write(sums, factors, end - pair, held, work, out[pair:end, row : row + held], False)
                else:
                    part = out_narrow[pair:end, row : row + held]
                    _write(sums, factors, end - pair, held, work_narrow, part, True)
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
def _sums(place, held, digits, order, kind, sums):
    tokens, steps, target = digits.ctypes.data, digits.shape[1] // (TOKENS * TOKENS), sums.ctypes.data
    if kind == AMX and digits.shape[0] == 1:
        amx_sums_of_one(place[0], place[1], place[2], tokens, steps, sums[1].ctypes.data)
    elif kind == AMX:
        amx_sums(place[0], place[1], place[2], tokens, steps, target)
    elif kind == VNNI:
        vnni_sums(place[0], place[1], held, tokens, steps, order, target)
    else:
        plain_sums(place[0], place[1], held, tokens, steps, order, target)


@njit(**OPTIONS)
def _factors(sizes, scales, factors):
    of_tokens, of_rows = factors
    of_tokens[sizes.shape[0] :] = ZERO
    of_tokens[: sizes.shape[0]] = sizes
    bits = of_rows.view(np.int32)
    for i in range(scales.shape[0]):
        bits[i] = np.int32(scales[i]) << 16


@njit(**OPTIONS)
def _write(sums, factors, tokens, held, work, out, narrow):
    """Sums of a block times the scales of its tokens and rows.

    Args:
        sums: (2, ROWS, TOKENS) int32.
        factors: scales of tokens and of rows, float32.
        tokens, held: how many of them and of the rows there are.
        work: (TOKENS, ROWS) of the output's dtype.
        out: the tokens' part of the output (tokens, held).
        narrow: whether the output is bfloat16.
    """
    of_tokens, of_rows = factors[0].ctypes.data, factors[1].ctypes.data
    whole = tokens == TOKENS and held == ROWS
    target, stride = (out.ctypes.data, out.strides[0]) if whole else (work.ctypes.data, work.strides[0])
    for first in range(0, held, SIDE):
        high = sums.ctypes.data + first * LINE
        low = high + ROWS * LINE
        place = target + first * work.itemsize
        if narrow:
            finish(high, low, of_tokens, of_rows + first * 4, place, stride, 1)
        else:
            finish(high, low, of_tokens, of_rows + first * 4, place, stride, 0)
    if not whole:
        for lane in range(tokens):
            for i in range(held):
                out[lane, i] = work[lane, i]
