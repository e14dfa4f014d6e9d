"""Attention of one token of each of several requests to packed keys and values in pages. Compiled by Numba.

The vectors of a chunk of the past are first copied out of their pages. Then each loop is that of `attention`, on the
same chunks, so the result is the same to the bit as for keys and values that were never in pages.
"""

import numpy as np

from .attention import CHUNK, center_products, rotate_queries, score_keys, softmax, sum_values
from .e8 import LANES, OPTIONS
from .jit import njit
from .threads import team_loop
from .words import WORK


@team_loop
def attend(queries, centers, past, keys, values, table, scale, key_code, value_code, key_turn, out, start, stop):
    """Attention of all queries of a head to one chunk of its past, for the parts start … stop.

    Args:
        queries: (heads, G, n) float32 of requests · key heads.
        centers: (key heads, n) float32, the centers subtracted from some keys; or nothing.
        past: key heads of a request; the first token it sees and the number of its tokens, (requests,) int64 each;
            where the parts of each head begin, (heads + 1,) int64. They are the chunks of its past in order.
        keys, values: pages as bytes (flat uint8), where they are: offset and strides of page and head, and their size:
            tokens of a page and bytes of a vector.
        table: (requests, pages) int64, the pages of a request in the order of its tokens.
        scale: float32 factor of the scores.
        key_code, value_code: `fixed` of `heads.encode`.
        key_turn: diagonal, steps and matrices of the keys, forward.
        out: sums (parts, G, n of values) of rotated values, peaks and totals (parts, G) of the softmax; filled.
    """
    heads, begins, lengths, firsts = past
    sums, peaks, totals = out
    group, n = queries.shape[1], queries.shape[2]
    rotated = np.empty((group, n), np.float32)
    weights = np.empty((group, CHUNK), np.float32)
    work = np.zeros(WORK, np.float32)
    words = np.zeros(LANES, np.uint64)
    scales = np.empty((CHUNK // LANES, LANES), np.float32)
    vectors = np.empty(CHUNK * max(keys[5], values[5]), np.uint8)
    for part in range(start, stop):
        which = np.searchsorted(firsts, part, side="right") - 1
        request, head = which // heads, which % heads
        first = begins[request] + (part - firsts[which]) * CHUNK
        count = min(CHUNK, lengths[request] - first)
        rotate_queries(queries[which], scale, key_turn, rotated)
        shifts = center_products(queries[which], centers, head, scale)
        _gather(keys, table[request], head, first, count, vectors)
        score_keys(rotated, shifts, vectors, 0, keys[5], count, key_code, words, work, scales, weights)
        for g in range(group):
            peaks[part, g], totals[part, g] = softmax(weights[g], count)
        _gather(values, table[request], head, first, count, vectors)
        sum_values(weights, vectors, 0, values[5], count, value_code, words, work, scales, sums[part])


@njit(**OPTIONS)
def _gather(pages, row, head, first, count, vectors):
    """Puts the vectors of `count` tokens from `first` on back to back."""
    stream, offset, page_stride, head_stride, page_tokens, size = pages
    done = 0
    while done < count:
        token = first + done
        within = token % page_tokens
        run = min(count - done, page_tokens - within)
        begin = offset + row[token // page_tokens] * page_stride + head * head_stride + within * size
        _copy(stream[begin : begin + run * size], vectors[done * size : (done + run) * size])
        done += run


@njit(**OPTIONS)
def _copy(source, target):
    for i in range(target.shape[0]):
        target[i] = source[i]
