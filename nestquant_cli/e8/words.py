"""Words: one block of eight entries as one integer of B bits, and rows of words as little-endian bit streams.

    word = index·q⁸ + Σ_j c_j q^j,   0 ≤ index < k,  0 ≤ c_j < q

Words are held as int64 bit patterns; at 64 bits they wrap, so division treats them as unsigned.
"""

import torch
from torch import Tensor

from .code import BLOCK, row_bytes

_LOW_63 = 0x7FFF_FFFF_FFFF_FFFF


def join(digits: Tensor, index: Tensor, q: int) -> Tensor:
    """Words from digits and multiplier indices.

    Args:
        digits: (..., 8) integer in 0 … q−1.
        index: (...) integer in 0 … k−1.
        q: nesting ratio.

    Returns:
        (...) int64.
    """
    word = index.to(torch.int64)
    for j in range(BLOCK - 1, -1, -1):
        word = word * q + digits[..., j].to(torch.int64)
    return word


def split(words: Tensor, q: int) -> tuple[Tensor, Tensor]:
    """Digits (..., 8) int64 and multiplier indices (...) int64 of words; the inverse of `join`.

    An index may come out larger than any code's k when the word was never written by `join`.
    """
    digits = torch.empty(*words.shape, BLOCK, dtype=torch.int64, device=words.device)
    for j in range(BLOCK):
        quotient = unsigned_quotient(words, q)
        digits[..., j] = words - quotient * q
        words = quotient
    return digits, words


def unsigned_quotient(a: Tensor, d: int) -> Tensor:
    """⌊a / d⌋ of int64 bit patterns read as unsigned, 2 ≤ d < 2³¹."""
    half = torch.bitwise_right_shift(a, 1) & _LOW_63
    quotient = torch.div(half, d, rounding_mode="floor") * 2
    rest = a - quotient * d  # below 3d, so never negative
    return quotient + (rest >= d).to(torch.int64)


def pack_words(words: Tensor, word_bits: int) -> Tensor:
    """Packs rows of words back to back, least significant bit first.

    Args:
        words: (rows, blocks) int64, each below 2^word_bits as unsigned.
        word_bits: 1 … 64.

    Returns:
        (rows, ⌈blocks·word_bits/8⌉) uint8; the last byte of a row is padded with zero bits.
    """
    rows, blocks = words.shape
    groups = -(-blocks // 8)  # eight words fill word_bits whole bytes
    padded = torch.nn.functional.pad(words, (0, 8 * groups - blocks)).view(rows, groups, 8)
    packed = torch.zeros(rows, groups, word_bits, dtype=torch.uint8, device=words.device)
    for place in range(8):
        for byte, shift in _bytes_of(place, word_bits):
            kept = min(8, word_bits - shift)  # bits of this byte above the word's top stay zero
            part = padded[..., place] << -shift if shift < 0 else padded[..., place] >> shift
            packed[..., byte] |= (part & ((1 << kept) - 1) & 255).to(torch.uint8)
    return packed.view(rows, groups * word_bits)[:, : row_bytes(blocks * BLOCK, word_bits)].contiguous()


def unpack_words(packed: Tensor, blocks: int, word_bits: int) -> Tensor:
    """The inverse of `pack_words`: (rows, bytes) uint8 to (rows, blocks) int64.

    Raises:
        ValueError: the rows do not have ⌈blocks·word_bits/8⌉ bytes.
    """
    rows, width = packed.shape
    if width != row_bytes(blocks * BLOCK, word_bits):
        needed = row_bytes(blocks * BLOCK, word_bits)
        raise ValueError(f"{blocks} words of {word_bits} bits need {needed} bytes, not {width}")
    groups = -(-blocks // 8)
    data = torch.nn.functional.pad(packed, (0, groups * word_bits - width)).view(rows, groups, word_bits)
    words = torch.zeros(rows, groups, 8, dtype=torch.int64, device=packed.device)
    for place in range(8):
        for byte, shift in _bytes_of(place, word_bits):
            part = data[..., byte].to(torch.int64)
            words[..., place] |= part >> -shift if shift < 0 else part << shift
    if word_bits < 64:
        words &= (1 << word_bits) - 1
    return words.view(rows, 8 * groups)[:, :blocks].contiguous()


def _bytes_of(place: int, word_bits: int) -> list[tuple[int, int]]:
    """Bytes that word `place` of a group of eight touches, and the bit of the word at bit 0 of each byte."""
    start = place * word_bits
    first, last = start // 8, (start + word_bits - 1) // 8
    return [(byte, 8 * byte - start) for byte in range(first, last + 1)]
