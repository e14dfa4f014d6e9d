"""The Triton kernels of the products; `product` says what they compute."""

import triton
import triton.language as tl

from .e8 import MAGIC, bits, interleave
from .words import decode, read_words


@triton.jit
def dot_kernel(
    words,
    x,
    row_scale,
    multipliers,
    sums,
    last,
    rows,
    blocks,
    width,
    steps,
    Q: tl.constexpr,
    BITS: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,
):
    """Dot products of ROWS rows with TOKENS tokens over `steps` tiles of WORDS words.

    Args:
        x: (TOKENS, 8, blocks) float32.
        sums: (parts, TOKENS, rows) float32, written, parts the second axis of the grid.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    begin = tl.program_id(1) * steps * WORDS
    totals = ()
    for _ in tl.static_range(TOKENS):
        totals = totals + (tl.zeros((ROWS, WORDS), tl.float32),)
    for step in range(steps):
        column = begin + step * WORDS + tl.arange(0, WORDS)[None, :]
        inside = column < blocks
        word = read_words(words, row.to(tl.int64), column, width, inside & (row < rows), BITS)
        u, m = decode(word, multipliers, last, Q)
        added = ()
        for t in tl.static_range(TOKENS):
            dot = tl.zeros((ROWS, WORDS), tl.float32)
            for i in tl.static_range(8):
                dot += u[i] * tl.load(x + (8 * t + i) * blocks + column, mask=inside, other=0.0)
            added = added + (totals[t] + m * dot,)
        totals = added
    rows_here = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    scale = tl.load(row_scale + rows_here, mask=rows_here < rows, other=0.0).to(tl.float32)
    for t in tl.static_range(TOKENS):
        at = (tl.program_id(1) * TOKENS + t) * rows + rows_here
        tl.store(sums + at, tl.sum(totals[t], axis=1) * scale, mask=rows_here < rows)


@triton.jit
def packed_tile_kernel(
    a,
    scale_a,
    words,
    row_scale,
    multipliers,
    y,
    last,
    tokens,
    rows,
    entries,
    width,
    Q: tl.constexpr,
    BITS: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    ENTRIES: tl.constexpr,
):
    """y (tokens, rows) of ROWS rows and all tokens, the weight decoded from words to the type of a."""
    token = tl.arange(0, TOKENS)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    sums = _no_sums(a, TOKENS, ROWS)
    for start in range(0, entries, ENTRIES):
        entry = start + tl.arange(0, ENTRIES)
        inside = (token[:, None] < tokens) & (entry[None, :] < entries)
        tile = tl.load(a + token[:, None].to(tl.int64) * entries + entry[None, :], mask=inside, other=0)
        column = start // 8 + tl.arange(0, ENTRIES // 8)[None, :]
        held = (row[:, None] < rows) & (column < entries // 8)
        u, m = decode(read_words(words, row[:, None].to(tl.int64), column, width, held, BITS), multipliers, last, Q)
        decoded = ()
        for i in tl.static_range(8):
            decoded = decoded + (_entry(u[i], m, a.dtype.element_ty),)
        sums = tl.dot(tile, tl.trans(interleave(decoded)), sums, out_dtype=sums.dtype)
    _store(y, sums, scale_a, row_scale, token, row, tokens, rows)


@triton.jit
def tile_kernel(
    a, scale_a, v, row_scale, y, tokens, rows, entries, TOKENS: tl.constexpr, ROWS: tl.constexpr, ENTRIES: tl.constexpr
):
    """y (tokens, rows) of a tile, the weight v (rows, entries) int8 cast to the type of a."""
    token_tiles = tl.cdiv(tokens, TOKENS)  # tiles that run together share their rows of the weight
    token = (tl.program_id(0) % token_tiles) * TOKENS + tl.arange(0, TOKENS)
    row = (tl.program_id(0) // token_tiles) * ROWS + tl.arange(0, ROWS)
    sums = _no_sums(a, TOKENS, ROWS)
    for start in range(0, entries, ENTRIES):
        entry = start + tl.arange(0, ENTRIES)
        inside = (token[:, None] < tokens) & (entry[None, :] < entries)
        tile = tl.load(a + token[:, None].to(tl.int64) * entries + entry[None, :], mask=inside, other=0)
        held = (row[None, :] < rows) & (entry[:, None] < entries)
        weight = tl.load(v + row[None, :].to(tl.int64) * entries + entry[:, None], mask=held, other=0)
        sums = tl.dot(tile, weight.to(a.dtype.element_ty), sums, out_dtype=sums.dtype)
    _store(y, sums, scale_a, row_scale, token, row, tokens, rows)


@triton.jit
def _no_sums(a, TOKENS: tl.constexpr, ROWS: tl.constexpr):
    """Zeros of the type that products of a are summed in."""
    if a.dtype.element_ty == tl.int8:
        return tl.zeros((TOKENS, ROWS), tl.int32)
    else:
        return tl.zeros((TOKENS, ROWS), tl.float32)


@triton.jit
def _entry(u, m, dtype: tl.constexpr):
    """m·u as an integer or floating type."""
    if dtype == tl.int8:
        return bits(u * m + MAGIC).to(tl.int8)
    else:
        return (u * m).to(dtype)


@triton.jit
def _store(y, sums, scale_a, row_scale, token, row, tokens, rows):
    """Writes sums·scale_a·row_scale."""
    by_token = tl.load(scale_a + token, mask=token < tokens, other=0.0)
    by_row = tl.load(row_scale + row, mask=row < rows, other=0.0).to(tl.float32)
    at = token[:, None].to(tl.int64) * rows + row[None, :]
    here = (token[:, None] < tokens) & (row[None, :] < rows)
    tl.store(y + at, sums.to(tl.float32) * by_token[:, None] * by_row[None, :], mask=here)
