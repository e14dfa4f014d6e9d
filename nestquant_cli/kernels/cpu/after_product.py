"""What follows a product, and the fingerprint of its input: single passes. Compiled by Numba."""

import numpy as np

from .e8 import LANE, OPTIONS
from .jit import njit
from .single import separate
from .threads import team_loop


@njit(**LANE)
def rounded(bits):
    """The bits of the bfloat16 nearest to a float32 (ties to even), from the float32's bits."""
    value = np.int64(bits) & 0xFFFFFFFF
    return np.uint16((value + 0x7FFF + ((value >> 16) & 1)) >> 16)


@njit(**OPTIONS)
def finished(total, token, shift, row, bias):
    """(total · token + shift) · row + bias, each step rounded, as `square.finish` and `epilogue` compute it."""
    return separate((separate(total * token) + shift) * row) + bias


@team_loop
def epilogue(sums, token_scale, centered, shift, row_scale, bias, out, out_narrow, start, stop):
    """(sums · token scale + centered · shift) · row scale + bias of the tokens start … stop.

    Args:
        sums: (tokens, rows) int32.
        token_scale: (tokens,) float32.
        centered: (tokens,) bool.
        shift: (rows,) float32, or nothing where no token is centered.
        row_scale: (rows,) float32.
        bias: (rows,) float32, or nothing.
        out, out_narrow: (tokens, rows) float32 or the bits of bfloat16 (uint16); the other one has no rows.
    """
    rows = sums.shape[1]
    line = np.empty(rows, np.float32)
    bits = line.view(np.int32)
    for token in range(start, stop):
        factor = token_scale[token]
        part = sums[token]
        target = out[token] if out.shape[0] else line
        if shift.shape[0] and centered[token]:
            for i in range(rows):  # loops of their own: nothing is fused
                target[i] = np.float32(part[i]) * factor
            for i in range(rows):
                target[i] = (target[i] + shift[i]) * row_scale[i]
        else:
            for i in range(rows):
                target[i] = np.float32(part[i]) * factor * row_scale[i]
        if bias.shape[0]:
            for i in range(rows):
                target[i] += bias[i]
        if out_narrow.shape[0]:
            row16 = out_narrow[token]
            for i in range(rows):
                row16[i] = rounded(bits[i])


@njit(**OPTIONS)
def fingerprint(words):
    """64 bits that depend on every bit of an array of uint64 and on its place."""
    total = np.uint64(0)
    for i in range(words.shape[0]):
        word = words[i]
        word = (word ^ (word >> np.uint64(32))) * np.uint64(0x9E3779B97F4A7C15)
        word = (word ^ (word >> np.uint64(29))) * (np.uint64(2 * i + 1) * np.uint64(0xBF58476D1CE4E5B9))
        total += word ^ (word >> np.uint64(32))
    return total
