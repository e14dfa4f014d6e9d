"""Decode-and-dot: the product of packed words with a single token, without the decoded matrix. Compiled by Numba.

Lanes are rows of the matrix, so that sums stay in their lanes and a coordinate of the token is a scalar.
"""

import numpy as np
import torch
from numba import njit
from torch import Tensor

from ..lattice.code import BLOCK, NestedCode
from .cpu import multipliers_of
from .cpu_lattice import LANES, OPTIONS, ZERO
from .cpu_team import share, spread
from .cpu_words import _FACTOR, _ROWS, _decode, _read, _split

_TOKEN = _ROWS  # after the rows of the decoder: the eight coordinates that meet the block, then the sums
_SUMS = _ROWS + LANES


def dot(packed: Tensor, x: Tensor, code: NestedCode) -> Tensor:
    """V·x of the integers V that packed words stand for.

    Args:
        packed: (rows, row_bytes) uint8.
        x: (entries,) floating point, entries a multiple of 8.
        code: the nested code.

    Returns:
        (rows,) float32; sums are taken in float32.
    """
    y = torch.empty(packed.shape[0])
    entries = x.shape[0]
    fixed = packed.contiguous().numpy(), code.word_bits, code.q, multipliers_of(code), x.float().numpy(), y.numpy()
    share(dot_rows_on_team, fixed, packed.shape[0], entries // BLOCK, LANES)
    return y


@njit(**OPTIONS)
def dot_rows(packed, word_bits, q, multipliers, x, y, start, stop):  # type: ignore[no-untyped-def]
    """Fills y (rows,) float32 for the rows start … stop; the arguments are those of `dot`."""
    work = np.zeros(_SUMS + LANES, np.float32)
    words = np.zeros(LANES, np.uint64)
    stream = packed.reshape(packed.size)
    side = np.float32(q)
    last = multipliers.shape[0] - 1
    for first in range(start, stop, LANES):
        count = min(LANES, stop - first)
        for lane in range(LANES):
            work[_SUMS + lane] = ZERO
        for column in range(x.shape[0] // 8):
            for lane in range(count):
                words[lane] = _read(stream, (first + lane) * packed.shape[1], column * word_bits, word_bits)
            _split(words, q, work)
            for lane in range(LANES):
                work[_FACTOR + lane] = multipliers[min(np.int64(work[_FACTOR + lane]), last)]
            _decode(work, side)
            for i in range(8):
                work[_TOKEN + i] = x[8 * column + i]
            _add(work)
        for lane in range(count):
            y[first + lane] = work[_SUMS + lane]


@njit(**OPTIONS)
def dot_rows_on_team(fixed, first, items, step, threads, team):  # type: ignore[no-untyped-def]
    """`dot_rows` on several threads, see `cpu_team.share`."""
    spread(dot_rows, fixed, first, items, step, threads, team)


@njit(**OPTIONS)
def _add(work):  # type: ignore[no-untyped-def]
    for lane in range(LANES):
        total = work[_SUMS + lane]
        for i in range(8):
            total += work[_TOKEN + i] * work[i * LANES + lane]
        work[_SUMS + lane] = total
