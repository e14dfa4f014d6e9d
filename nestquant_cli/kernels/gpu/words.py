"""Words in Triton: reading them, decoding them to entries, and joining entries to words."""

import triton
import triton.language as tl

from .e8 import MAGIC, bits, interleave, representative, separate, whole


@triton.jit
def read_words(words, row, column, width, mask, BITS: tl.constexpr):
    """The words at (row, column), two tensors that broadcast together.

    Args:
        words: pointer to rows of words: int32 for BITS 32, else uint8.
        row: int64.
        column: int32.
        width: elements of a row behind the pointer.
        mask: which words exist; the others are zero.
        BITS: of a word.

    Returns:
        uint32 for BITS ≤ 32, else uint64.
    """
    if BITS == 32:
        return tl.load(words + row * width + column, mask=mask, other=0).to(tl.uint32, bitcast=True)
    else:
        place = column * BITS
        byte = place >> 3
        shift = place & 7
        word = ((row + column) * 0).to(tl.uint64)
        for i in tl.static_range((BITS + 14) // 8 if BITS % 8 else BITS // 8):
            part = tl.load(words + row * width + byte + i, mask=mask & (byte + i < width), other=0).to(tl.uint64)
            if i == 0:
                word |= part >> shift.to(tl.uint64)
            else:  # in two steps, as a shift by 64 is not defined
                word |= (part << (8 * i - 1 - shift).to(tl.uint64)) << 1
        if BITS < 64:
            word &= (1 << BITS) - 1
        return word.to(tl.uint32) if BITS <= 32 else word


@triton.jit
def decode(word, multipliers, last, Q: tl.constexpr):
    """Words to u, their blocks in doubled coordinates, and the multipliers m; the entries are v = m·u.

    Args:
        word: uint32 or uint64.
        multipliers: pointer to float32.
        last: k − 1, the index that larger ones count as.
        Q: nesting ratio.

    Returns:
        eight float32 tensors, and one.
    """
    upper = word // (Q * Q * Q * Q)
    index = upper // (Q * Q * Q * Q)
    low = (word - upper * (Q * Q * Q * Q)).to(tl.uint32)
    high = (upper - index * (Q * Q * Q * Q)).to(tl.uint32)
    digits = _digits_of_pairs(low, Q) + _digits_of_pairs(high, Q)
    c7 = digits[7]
    # The generator of e8.voronoi, plus ε.
    shifted = (4 * digits[0] - 2 * digits[1] + c7 + 0.25,)
    for i in tl.static_range(1, 6):
        shifted = shifted + (2 * (digits[i] - digits[i + 1]) + (c7 + 2.0 ** (-2 - i)),)
    shifted = shifted + (2 * digits[6] + c7 + 2.0**-8, c7 + 2.0**-9)
    m = tl.load(multipliers + tl.minimum(index, last).to(tl.int32))
    return representative(shifted, Q), m


@triton.jit
def _digits_of_pairs(number, Q: tl.constexpr):
    """Four digits of a uint32 below Q⁴ as float32, the least significant first."""
    upper = number // (Q * Q)
    d0, d1 = _digits_of_pair(number - upper * (Q * Q), Q)
    d2, d3 = _digits_of_pair(upper, Q)
    return (d0, d1, d2, d3)


@triton.jit
def _digits_of_pair(pair, Q: tl.constexpr):
    number = (pair | 0x4B000000).to(tl.float32, bitcast=True) - 8388608.0  # the float of an integer below 2²³
    upper = whole(number * (1.0 / Q) - (0.5 - 0.5 / Q))
    return number - Q * upper, upper


@triton.jit
def unpack_kernel(
    words, v, multipliers, last, blocks, width, size, Q: tl.constexpr, BITS: tl.constexpr, TILE: tl.constexpr
):
    """Decodes TILE blocks of v (size,), int8 or int16: all rows."""
    block = tl.program_id(0) * TILE + tl.arange(0, TILE)
    row = block // blocks
    column = block - row * blocks
    u, m = decode(read_words(words, row.to(tl.int64), column, width, block < size // 8, BITS), multipliers, last, Q)
    entries = ()
    for i in tl.static_range(8):
        entries = entries + (bits(u[i] * m + MAGIC).to(v.dtype.element_ty),)
    at = tl.program_id(0).to(tl.int64) * (8 * TILE) + tl.arange(0, 8 * TILE)
    tl.store(v + at, interleave(entries), mask=at < size)


@triton.jit
def join_kernel(v, index, words, multipliers, size, Q: tl.constexpr, TILE: tl.constexpr):
    """The words (int32, low bits; or int64) of TILE blocks from all rows' entries v (size,) and multiplier indices."""
    block = tl.program_id(0) * TILE + tl.arange(0, TILE)
    at = tl.program_id(0).to(tl.int64) * (8 * TILE) + tl.arange(0, 8 * TILE)
    choice = tl.load(index + block, mask=block < size // 8, other=0).to(tl.int32)
    inverse = 1.0 / tl.load(multipliers + choice)
    entries = separate(tl.load(v + at, mask=at < size, other=0).to(tl.float32), TILE)
    last = whole(entries[7] * inverse)
    carried = (whole(entries[6] * inverse) - last) * 0.5
    word_type: tl.constexpr = tl.uint64 if words.dtype.element_ty == tl.int64 else tl.uint32
    word = choice.to(word_type) * Q + _remainder(last, Q).to(word_type)
    word = word * Q + _remainder(carried, Q).to(word_type)
    for j in tl.static_range(5):
        carried += (whole(entries[5 - j] * inverse) - last) * 0.5
        word = word * Q + _remainder(carried, Q).to(word_type)
    lowest = (whole(entries[0] * inverse) - last) * 0.25 + carried * 0.5
    word = word * Q + _remainder(lowest, Q).to(word_type)
    tl.store(words + block, word.to(words.dtype.element_ty, bitcast=True), mask=block < size // 8)


@triton.jit
def _remainder(x, Q: tl.constexpr):
    """x modulo Q in 0 … Q − 1 of an integer in float32, as int32."""
    return (x - Q * whole(x * (1.0 / Q) - (0.5 - 0.5 / Q))).to(tl.int32)
