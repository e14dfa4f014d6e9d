"""Tokens rotated and coded in one pass over memory: a tile of 16 stays in the cache. Compiled by Numba.

For 2,048 tokens of 1,536 features the rotation takes a fifth of the time of the int8 product that follows; with the
search over all multipliers, encoding takes as long as that product where the weight has few rows.
"""

import numpy as np

from .after_product import rounded
from .center import subtract_from_tile, subtract_nearer
from .e8 import LANE, LANES, ONE, OPTIONS, ZERO
from .encode import CHOSEN, choose, quantize, store
from .encode import WORK as ENCODER_WORK
from .jit import njit
from .rotate import FEW, TOKENS, WORK, transform, transform_one
from .threads import team_loop
from .tile_rows import load_rows, store_rows

_TOGETHER = LANES // TOKENS  # blocks of a token that are encoded together


@team_loop
def rotate(wide, narrow, plan, out, out_narrow, start, stop):
    """Rotates the tokens start … stop.

    Args:
        wide, narrow: the input (tokens, features), float32 or the bits of bfloat16 (uint16); the other one has no rows.
        plan: scale (order,) float32, then orders, numbers of factors, factors and signs of the Hadamard blocks.
        out, out_narrow: the output (tokens, order), likewise.
    """
    order = plan[0].shape[0]
    work = np.zeros(WORK, np.float32)
    if stop - start <= FEW:
        line = np.empty(order, np.float32)
        other = np.empty(order, np.float32)
        for token in range(start, stop):
            row = out[token] if out.shape[0] else line
            rotate_one(wide, narrow, token, plan, row, work, other)
            if out_narrow.shape[0]:
                row16, row_bits = out_narrow[token], line.view(np.int32)
                for i in range(order):
                    row16[i] = rounded(row_bits[i])
        return
    tile = np.empty(order * TOKENS, np.float32)
    places = np.zeros(TOKENS, np.int64)
    for first in range(start, stop, TOKENS):
        count = min(TOKENS, stop - first)
        load_rotated(wide, narrow, first, count, plan, tile, work)
        for lane in range(count):
            if out.shape[0]:
                places[lane] = out.ctypes.data + (first + lane) * out.strides[0]
            else:
                places[lane] = out_narrow.ctypes.data + (first + lane) * out_narrow.strides[0]
        store_rows(tile, places, count, out_narrow.shape[0] > 0, order)


@team_loop
def encode(wide, narrow, plan, center, unit, multipliers, q, limit, v, is_wide, scale, centered, start, stop):
    """Rotates and codes the tokens start … stop.

    Args:
        wide, narrow, plan: as in `rotate`; the order is a multiple of 8.
        center: (order,) float32, subtracted from rotated tokens that it makes smaller; or nothing.
        unit: size of v = 1 in units of a token's root mean square.
        multipliers: (k,) float32.
        q, limit: float32.
        v: (tokens, order/4) or (tokens, order/2) int32, the bytes of int8 or, if `is_wide`, int16 entries.
        scale: (tokens,) float32, filled with the size of v = 1.
        centered: (tokens,) bool, filled with whether the center was subtracted; or nothing without one.
    """
    order = plan[0].shape[0]
    width = order // 8
    if stop - start <= FEW:
        _encode_few(wide, narrow, plan, center, unit, multipliers, q, limit, v, is_wide, scale, centered, start, stop)
        return
    tile = np.empty(order * TOKENS, np.float32)
    work = np.zeros(max(WORK, ENCODER_WORK), np.float32)
    spare = np.zeros(ENCODER_WORK, np.float32)
    words = np.empty(4 * LANES, np.int32)
    factor = np.empty(TOKENS, np.float32)
    for first in range(start, stop, TOKENS):
        count = min(TOKENS, stop - first)
        load_rotated(wide, narrow, first, count, plan, tile, work)
        if center.shape[0]:
            subtract_from_tile(tile, center, work)
            for lane in range(count):
                centered[first + lane] = work[lane] != ZERO
        _scales(tile, width, unit, factor, work)
        for lane in range(count):
            scale[first + lane] = factor[lane]
        for lane in range(TOKENS):
            factor[lane] = ONE / factor[lane]
        for block in range(0, width, _TOGETHER):
            here = min(_TOGETHER, width - block)
            _take(tile, block, here, factor, work)
            choose(work, multipliers, q, limit, spare)
            store(work, CHOSEN, 0, LANES, words, words, is_wide)
            _place(words, v, first, count, block, here, 4 if is_wide else 2)


@njit(**OPTIONS)
def _encode_few(wide, narrow, plan, center, unit, multipliers, q, limit, v, is_wide, scale, centered, start, stop):
    """`encode` for a few tokens: rotated one by one, then coded like rows of a weight."""
    order = plan[0].shape[0]
    width = order // 8
    tokens = stop - start
    rows = np.empty((tokens, order), np.float32)
    other = np.empty(order, np.float32)
    work = np.zeros(WORK, np.float32)
    factors = np.empty(tokens, np.float32)
    for i in range(tokens):
        row = rows[i]
        rotate_one(wide, narrow, start + i, plan, row, work, other)
        if center.shape[0]:
            centered[start + i] = subtract_nearer(row, center)
        scale[start + i] = _size(row, unit, work)
        factors[i] = ONE / scale[start + i]
    index = np.empty(tokens * width, np.uint8)
    flat = rows.reshape(tokens * order)
    part = v[start:stop].reshape(tokens * v.shape[1])
    quantize(flat, factors, width, multipliers, q, limit, part, is_wide, index, 0, tokens * width)


@njit(**OPTIONS)
def _size(row, unit, work):
    """Size of v = 1 of a token, summed in the order of `_scales`: its code is the same alone and among others."""
    for i in range(8):
        work[i] = ZERO
    for first in range(0, row.shape[0], 8):
        part = row[first : first + 8]
        for i in range(8):
            work[i] += part[i] * part[i]
    total = ZERO
    for i in range(8):
        total += work[i]
    return _size_of(total, row.shape[0], unit)


@njit(**LANE)
def _size_of(total, order, unit):
    """Size of v = 1 of a token, from the sum of its squares; 1 for a token of zeros."""
    size = np.sqrt(total / np.float32(order)) * unit
    return ONE if size == ZERO else size


@njit(**OPTIONS)
def rotate_one(wide, narrow, token, plan, row, work, other):
    """Loads a token into a row and rotates it."""
    scale, orders, numbers, factors, signs = plan
    row[:] = ZERO
    if wide.shape[0]:
        for i in range(wide.shape[1]):
            row[i] = wide[token, i] * scale[i]
    else:
        bits = row.view(np.int32)
        for i in range(narrow.shape[1]):
            bits[i] = np.int32(narrow[token, i]) << 16
        for i in range(narrow.shape[1]):
            row[i] *= scale[i]
    start = 0
    at = 0
    sign = 0
    for block in range(orders.shape[0]):
        sizes = factors[at : at + numbers[block]]
        end = start + orders[block]
        transform_one(row[start:end], sizes, signs[sign:], work, other[start:end])
        start = end
        at += numbers[block]
        for p in sizes:
            sign += p * p


@njit(**OPTIONS)
def load_rotated(wide, narrow, first, count, plan, tile, work):
    """Loads `count` tokens into a tile and rotates them; the other lanes mean nothing."""
    scale, orders, numbers, factors, signs = plan
    places = np.empty(TOKENS, np.int64)
    for lane in range(TOKENS):
        token = first + min(lane, count - 1)
        if wide.shape[0]:
            places[lane] = wide.ctypes.data + token * wide.strides[0]
        else:
            places[lane] = narrow.ctypes.data + token * narrow.strides[0]
    features = wide.shape[1] if wide.shape[0] else narrow.shape[1]
    load_rows(places, narrow.shape[0] > 0, scale, tile, features)
    start = 0
    at = 0
    sign = 0
    for block in range(orders.shape[0]):
        sizes = factors[at : at + numbers[block]]
        transform(tile[start : start + orders[block] * TOKENS], sizes, signs[sign:], work)
        start += orders[block] * TOKENS
        at += numbers[block]
        for p in sizes:
            sign += p * p


@njit(**OPTIONS)
def _scales(tile, width, unit, scale, work):
    """Size of v = 1 of each token of a tile; 1 for a token of zeros."""
    for lane in range(8 * TOKENS):
        work[lane] = ZERO
    for block in range(width):
        part = tile[8 * block * TOKENS : 8 * (block + 1) * TOKENS]
        for lane in range(8 * TOKENS):
            work[lane] += part[lane] * part[lane]
    for lane in range(TOKENS):
        total = ZERO
        for i in range(8):
            total += work[i * TOKENS + lane]
        scale[lane] = _size_of(total, 8 * width, unit)


@njit(**OPTIONS)
def _take(tile, block, here, factor, work):
    """Blocks of a tile, in units of v, to the lanes of the encoder's tile: lane = block·TOKENS + token."""
    for j in range(_TOGETHER):
        if j < here:
            part = tile[8 * (block + j) * TOKENS : 8 * (block + j + 1) * TOKENS]
            for i in range(8):
                row = work[i * LANES + j * TOKENS : i * LANES + (j + 1) * TOKENS]
                for lane in range(TOKENS):
                    row[lane] = part[i * TOKENS + lane] * factor[lane]
        else:
            for i in range(8):
                for lane in range(TOKENS):
                    work[i * LANES + j * TOKENS + lane] = ZERO


@njit(**OPTIONS)
def _place(words, v, first, count, block, here, size):
    for lane in range(count):
        row = v[first + lane, size * block : size * (block + here)]
        for j in range(here):
            for i in range(size):
                row[size * j + i] = words[size * (j * TOKENS + lane) + i]
