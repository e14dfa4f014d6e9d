"""Attention of a few queries to packed keys and values, decoded tile by tile and never stored. Compiled by Numba.

Queries are rotated instead of the keys, and the weighted sum of the values is un-rotated instead of the values. The
past is cut into chunks whose softmax statistics are merged at the end, the same chunks on any number of threads.
"""

import numpy as np

from .e8 import INFINITY, LANES, ONE, OPTIONS, ZERO
from .heads import decode_column, load_lanes, read_scales, store_lanes
from .jit import njit
from .rotate_heads import rotate_tile
from .threads import team_loop
from .tile_products import BLOCK_SUMS, add_products, add_weighted, folded
from .words import WORK

CHUNK = 8 * LANES  # tokens of a part of the past

_LOG2E = np.float32(1.4426950408889634)
_LEAST = np.float32(-126)  # 2^x below is taken for zero
# The Taylor series of 2^x, whose remainder on |x| ≤ ½ is below half a unit in the last place.
_C1, _C2, _C3, _C4, _C5, _C6, _C7 = (
    np.float32(np.log(2) ** i / f) for i, f in ((1, 1), (2, 2), (3, 6), (4, 24), (5, 120), (6, 720), (7, 5040))
)
_HALF = np.float32(0.5)


@team_loop
def attend(
    queries, centers, place, keys, values, mask, masked, scale, key_code, value_code, key_turn, out, start, stop
):
    """Attention of all queries of a head to one chunk of its past, for the parts start … stop.

    Args:
        queries: (heads, G, n) float32 of batch · key heads; part i is chunk i mod chunks of head i div chunks.
        centers: (key heads, n) float32, the centers subtracted from some keys; or nothing.
        place: key heads in a sequence, tokens.
        keys, values: bytes (flat uint8) and where they are: offset and strides of batch, head and token.
        mask: (batch, key heads, G, tokens) float32, added to the scores if `masked`.
        scale: float32 factor of the scores.
        key_code, value_code: `fixed` of `heads.encode`.
        key_turn: diagonal, steps and matrices of the keys, forward.
        out: sums (parts, G, n of values) of rotated values, peaks and totals (parts, G) of the softmax; filled.
    """
    heads, tokens = place
    sums, peaks, totals = out
    chunks = (tokens + CHUNK - 1) // CHUNK
    group, n = queries.shape[1], queries.shape[2]
    rotated = np.empty((group, n), np.float32)
    weights = np.empty((group, CHUNK), np.float32)
    work = np.zeros(WORK, np.float32)
    words = np.zeros(LANES, np.uint64)
    scales = np.empty((CHUNK // LANES, LANES), np.float32)
    for part in range(start, stop):
        which = part // chunks
        first = part % chunks * CHUNK
        count = min(CHUNK, tokens - first)
        batch, head = which // heads, which % heads
        rotate_queries(queries[which], scale, key_turn, rotated)
        begin = keys[1] + batch * keys[2] + head * keys[3] + first * keys[4]
        shifts = center_products(queries[which], centers, head, scale)
        score_keys(rotated, shifts, keys[0], begin, keys[4], count, key_code, words, work, scales, weights)
        for g in range(group):
            if masked:
                for t in range(count):
                    weights[g, t] += mask[batch, head, g, first + t]
            peaks[part, g], totals[part, g] = softmax(weights[g], count)
        begin = values[1] + batch * values[2] + head * values[3] + first * values[4]
        sum_values(weights, values[0], begin, values[4], count, value_code, words, work, scales, sums[part])


@njit(**OPTIONS)
def rotate_queries(queries, scale, key_turn, rotated):
    """R times the rows of queries (G, n), G ≤ LANES, times the scale of the scores."""
    diagonal, steps, matrices = key_turn
    group, n = queries.shape
    tile = np.zeros(2 * n * LANES, np.float32)
    load_lanes(queries, diagonal, 0, group, tile)
    rotate_tile(tile, steps, matrices)
    for g in range(group):
        for j in range(n):
            rotated[g, j] = tile[j * LANES + g] * scale


@njit(**OPTIONS)
def center_products(queries, centers, head, scale):
    """Scores (G,) of queries (G, n) with the center of a head's keys; zeros where there are no centers.

    The sum has one order on every machine. A library's product has not: it goes by where its operands lie in memory.
    """
    group, n = queries.shape
    shifts = np.zeros(group, np.float32)
    if centers.shape[0]:
        for g in range(group):
            total = ZERO
            for j in range(n):
                total += queries[g, j] * centers[head, j]
            shifts[g] = total * scale
    return shifts


@njit(**OPTIONS)
def score_keys(queries, shifts, stream, begin, stride, count, code, words, work, scales, scores):
    """Products of queries (G, n) with `count` packed keys: fills scores (G, CHUNK) up to there.

    A key with a subtracted center gets the query's share of `shifts` (G,) too.
    """
    group, n = queries.shape
    sums = np.empty((group, LANES), np.float32)
    at_queries, at_work, at_sums = queries.ctypes.data, work.ctypes.data, sums.ctypes.data
    for first in range(0, count, LANES):
        size = min(LANES, count - first)
        sums[:] = ZERO
        at = begin + first * stride
        for column in range(n // 8):
            decode_column(stream, at, stride, size, column, code, words, work)
            add_products(at_queries + 32 * column, 4 * n, group, at_work, at_sums)
        read_scales(stream, at, stride, size, scales[0])
        for g in range(group):
            row = scores[g, first : first + size]
            for lane in range(size):
                row[lane] = sums[g, lane] * abs(scales[0, lane])
            # In one loop with the product, a compiler may or may not round the product before it adds this, by where
            # the arrays lie in memory: it has one loop for arrays that may overlap and another for those that do not.
            for lane in range(size):
                row[lane] += shifts[g] if scales[0, lane] < ZERO else ZERO


@njit(**OPTIONS)
def softmax(row_of_scores, count):
    """Replaces `count` scores, and the rest of their last tile, by exp(score − peak), zero from `count` on.

    Returns the peak and their sum. Where all scores are −∞, they become zeros and the sum is zero. A score that is no
    number makes the sum one that is none, whatever the others are.
    """
    scores = row_of_scores[: (count + LANES - 1) // LANES * LANES]
    scores[count:] = -INFINITY
    partial = np.full(LANES, -INFINITY, np.float32)
    for first in range(0, scores.shape[0], LANES):
        row = scores[first : first + LANES]
        for lane in range(LANES):
            partial[lane] = row[lane] if row[lane] > partial[lane] else partial[lane]
    peak = np.max(partial)
    if peak == -INFINITY:  # comparisons pass over what is no number, a sum of −∞ does not
        total = ZERO
        for t in range(count):
            total += scores[t]
        scores[:] = ZERO
        return peak, total if np.isnan(total) else ZERO
    bits = np.empty(LANES, np.int32)
    powers = bits.view(np.float32)
    partial[:] = ZERO
    for first in range(0, scores.shape[0], LANES):
        row = scores[first : first + LANES]
        for lane in range(LANES):
            x = (row[lane] - peak) * _LOG2E
            whole = np.floor(max(x, _LEAST) + _HALF)
            bits[lane] = (np.int32(whole) + 127) << 23
        for lane in range(LANES):
            x = (row[lane] - peak) * _LOG2E
            r = x - np.floor(max(x, _LEAST) + _HALF)
            power = ONE + r * (_C1 + r * (_C2 + r * (_C3 + r * (_C4 + r * (_C5 + r * (_C6 + r * _C7))))))
            row[lane] = ZERO if x < _LEAST else power * powers[lane]
            partial[lane] += row[lane]
    return peak, np.sum(partial)


@njit(**OPTIONS)
def sum_values(weights, stream, begin, stride, count, code, words, work, scales, sums):
    """Sums of `count` packed values under weights (G, CHUNK), zero beyond: fills sums (G, n) in the rotated basis."""
    group, n = sums.shape
    for first in range(0, count, LANES):
        tile = scales[first // LANES]
        read_scales(stream, begin + first * stride, stride, min(LANES, count - first), tile)
        for g in range(group):
            for lane in range(LANES):
                weights[g, first + lane] *= abs(tile[lane])
    partial = np.empty((group, BLOCK_SUMS), np.float32)
    at_weights, at_work, at_partial = weights.ctypes.data, work.ctypes.data, partial.ctypes.data
    for column in range(n // 8):
        partial[:] = ZERO
        for first in range(0, count, LANES):
            at = begin + first * stride
            decode_column(stream, at, stride, min(LANES, count - first), column, code, words, work)
            add_weighted(at_weights + 4 * first, 4 * CHUNK, group, at_work, at_partial)
        folded(at_partial, group, sums.ctypes.data + 32 * column, 4 * n)


@njit(**OPTIONS)
def merge(parts, firsts, value_turn, out, lse):
    """Puts the chunks of each head together, divides by the totals and un-rotates: fills out (heads, G, n).

    The parts of head h are firsts[h] … firsts[h + 1]. A query that may look nowhere gets zeros. Fills lse (heads, G)
    with the log of the sum of exp(scores).
    """
    diagonal, steps, matrices = value_turn
    heads, group, n = out.shape
    tile = np.zeros(2 * n * LANES, np.float32)
    ones = np.ones(LANES, np.float32)
    rows = out.reshape(heads * group, n)
    for first in range(0, heads * group, LANES):
        count = min(LANES, heads * group - first)
        tile[:] = ZERO
        for lane in range(count):
            head, g = (first + lane) // group, (first + lane) % group
            lse[head, g] = _merge_lane(parts, firsts[head], firsts[head + 1], g, lane, tile)
        rotate_tile(tile, steps, matrices)
        store_lanes(tile, ones, diagonal, first, count, rows)


@njit(**OPTIONS)
def _merge_lane(parts, begin, end, g, lane, tile):
    """Fills a lane of a tile of zeros with the sum of query g over the parts begin … end, divided by its total.

    Returns the log of the total.
    """
    sums, peaks, totals = parts
    n = sums.shape[2]
    peak = -INFINITY
    for part in range(begin, end):
        peak = max(peak, peaks[part, g])
    total = ZERO
    for part in range(begin, end):
        if totals[part, g] != ZERO:
            factor = np.exp(peaks[part, g] - peak)
            total += factor * totals[part, g]
            for j in range(n):
                tile[j * LANES + lane] += factor * sums[part, g, j]
    inverse = ONE / total if total != ZERO else ZERO
    for j in range(n):
        tile[j * LANES + lane] *= inverse
    return peak + np.log(total) if total != ZERO else -INFINITY
