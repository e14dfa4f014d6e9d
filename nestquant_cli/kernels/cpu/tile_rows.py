"""Rows of tokens to tiles, where lanes are tokens, and back. Compiled by Numba.

One number at a time, loading a tile took three quarters of the time of rotating it.
"""

from numba import carray

from .after_product import rounded
from .e8 import OPTIONS, ZERO
from .jit import njit
from .pointers import float32_at, int32_at, uint16_at
from .square import LINE, SIDE, columns, rows


@njit(**OPTIONS)
def load_rows(places, narrow, scale, tile, features):
    """Loads SIDE rows into a tile, each coordinate times its scale.

    Args:
        places: (SIDE,) int64, addresses of the rows.
        narrow: whether they are bfloat16; else float32.
        scale: (features or more,) float32.
        tile: (order·SIDE,) float32, coordinate i of the row in a lane to tile[SIDE·i + lane]; zeros from features on.
        features: coordinates of a row.
    """
    whole = features // SIDE * SIDE
    for at in range(0, whole, SIDE):
        target, factors = tile.ctypes.data + at * LINE, scale.ctypes.data + 4 * at
        if narrow:
            columns(places.ctypes.data, 2 * at, factors, target, 1)
        else:
            columns(places.ctypes.data, 4 * at, factors, target, 0)
    for lane in range(SIDE):
        if narrow:
            bits = carray(int32_at(tile.ctypes.data), tile.shape)
            row16 = carray(uint16_at(places[lane]), (features,))
            for i in range(whole, features):
                bits[i * SIDE + lane] = int(row16[i]) << 16
                tile[i * SIDE + lane] *= scale[i]
        else:
            row = carray(float32_at(places[lane]), (features,))
            for i in range(whole, features):
                tile[i * SIDE + lane] = row[i] * scale[i]
    tile[features * SIDE :] = ZERO


@njit(**OPTIONS)
def store_rows(tile, places, count, narrow, order):
    """Writes the first `count` rows of a tile.

    Args:
        tile: as in `load_rows`.
        places: (SIDE,) int64, addresses of the rows; where there are fewer, the others are never used.
        count: how many rows.
        narrow: whether they become bfloat16; else float32.
        order: coordinates of a row.
    """
    whole = order // SIDE * SIDE if count == SIDE else 0
    for at in range(0, whole, SIDE):
        if narrow:
            rows(tile.ctypes.data + at * LINE, places.ctypes.data, 2 * at, 1)
        else:
            rows(tile.ctypes.data + at * LINE, places.ctypes.data, 4 * at, 0)
    for lane in range(count):
        if narrow:
            bits = carray(int32_at(tile.ctypes.data), tile.shape)
            row16 = carray(uint16_at(places[lane]), (order,))
            for i in range(whole, order):
                row16[i] = rounded(bits[i * SIDE + lane])
        else:
            row = carray(float32_at(places[lane]), (order,))
            for i in range(whole, order):
                row[i] = tile[i * SIDE + lane]
