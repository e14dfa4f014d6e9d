"""Loops over what several experts have, each where it lies: int8 rows times tokens, and sums. Compiled by Numba."""

import numpy as np
from numba import carray

from .after_product import rounded
from .e8 import OPTIONS, ZERO
from .jit import njit
from .pointers import float32_at, int8_at, uint16_at
from .threads import spread, team_loop


@njit(**OPTIONS)
def dot_experts(fixed, first, items, step, threads, team):
    """Rows of all experts one after another, shared among threads; takes what `on_team` of a loop takes."""
    spread(_dot, fixed, first, items, step, threads, team)


# Sums may be taken in any order, which lets them stay in the lanes of a vector.
@njit(**{**OPTIONS, "fastmath": {"contract", "reassoc", "nsz"}})
def _dot(x, taken, ends, addresses, rows, out, out_narrow, start, stop):
    """The items start … stop; item expert·rows + row is a row of an expert.

    Args:
        x: (tokens, order) float32.
        taken: (pairs,) int64, the token of each pair, expert by expert.
        ends: (experts,) int64, the pair behind the last of each expert.
        addresses: (experts, 2) int64, of the int8 rows and of their scales, the bits of bfloat16.
        rows: rows of each expert.
        out, out_narrow: (pairs, rows) float32 or the bits of bfloat16 (uint16); the other one has no rows.
    """
    order = x.shape[1]
    bits = np.empty(2, np.int32)
    numbers = bits.view(np.float32)
    for item in range(start, stop):
        expert = item // rows
        row = item - expert * rows
        weights = carray(int8_at(addresses[expert, 0] + row * order), (order,))
        scales = carray(uint16_at(addresses[expert, 1]), (rows,))
        bits[0] = np.int32(scales[row]) << 16
        for pair in range(ends[expert - 1] if expert else 0, ends[expert]):
            values = x[taken[pair]]
            total = ZERO
            for i in range(order):
                total += np.float32(weights[i]) * values[i]
            numbers[1] = total * numbers[0]
            if out.shape[0]:
                out[pair, row] = numbers[1]
            else:
                out_narrow[pair, row] = rounded(bits[1])


@team_loop
def add_experts(addresses, weights, k, out, out_narrow, start, stop):
    """The tokens start … stop of the weighted sums of what their experts gave.

    Args:
        addresses: (tokens·k,) int64 of each expert's output for the token, of the output's dtype; 0 for none.
        weights: (tokens·k,) float32.
        k: experts of a token.
        out, out_narrow: (tokens, size) float32 or the bits of bfloat16 (uint16); the other one has no rows.
    """
    size = max(out.shape[1], out_narrow.shape[1])
    line = np.empty(size, np.float32)
    bits = line.view(np.int32)
    other = np.empty(size, np.float32)
    other_bits = other.view(np.int32)
    for token in range(start, stop):
        line[:] = ZERO
        for pair in range(token * k, token * k + k):
            if addresses[pair] == 0:
                continue
            weight = weights[pair]
            if out.shape[0]:
                row = carray(float32_at(addresses[pair]), (size,))
                for i in range(size):
                    line[i] += weight * row[i]
            else:
                row16 = carray(uint16_at(addresses[pair]), (size,))
                for i in range(size):
                    other_bits[i] = np.int32(row16[i]) << 16
                for i in range(size):
                    line[i] += weight * other[i]
        if out.shape[0]:
            out[token, :] = line
        else:
            target = out_narrow[token]
            for i in range(size):
                target[i] = rounded(bits[i])
