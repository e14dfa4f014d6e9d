"""Digits below 2^bits as strings of bits: entry j of a row at its bit bits·j, as words of one index would have them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .code import BLOCK, row_bytes
from .words import join, pack_words, split, unpack_words


def pack_digits(digits: Tensor, bits: int) -> Tensor:
    """Digits (rows, entries) uint8 below 2^bits as a string of bits, entry j at bit bits·j: (rows, bytes) uint8."""
    rows, entries = digits.shape
    if BLOCK % bits == 0:
        apart = digits.view(rows, -1, BLOCK // bits)
        shifts = torch.arange(0, BLOCK, bits, dtype=torch.uint8, device=digits.device)
        return (apart << shifts).sum(2, dtype=torch.uint8)
    blocks = digits.view(rows, entries // BLOCK, BLOCK)
    return pack_words(join(blocks, torch.zeros_like(blocks[..., 0]), 1 << bits), BLOCK * bits)


def unpack_digits(packed: Tensor, entries: int, bits: int) -> Tensor:
    """The inverse of `pack_digits`: (rows, entries) uint8."""
    rows = packed.shape[0]
    if BLOCK % bits == 0:
        shifts = torch.arange(0, BLOCK, bits, dtype=torch.uint8, device=packed.device)
        return ((packed[:, :, None] >> shifts) & ((1 << bits) - 1)).view(rows, entries)
    words = unpack_words(packed, entries // BLOCK, BLOCK * bits)
    return split(words, 1 << bits)[0].to(torch.uint8).view(rows, entries)


def zero_bytes(groups: int, bits: int) -> int:
    """Bytes of a row of packed zeros."""
    return -(-groups * bits // 8)


def pack_zeros(zeros: Tensor, bits: int) -> Tensor:
    """Zeros (rows, groups) uint8 as a string of bits: (rows, ⌈groups·bits/8⌉) uint8."""
    count = zeros.shape[1]
    return pack_digits(F.pad(zeros, (0, -count % BLOCK)), bits)[:, : zero_bytes(count, bits)].contiguous()


def unpack_zeros(packed: Tensor, groups: int, bits: int) -> Tensor:
    """The inverse of `pack_zeros`."""
    entries = groups + -groups % BLOCK
    return unpack_digits(F.pad(packed, (0, row_bytes(entries, BLOCK * bits) - packed.shape[1])), entries, bits)[
        :, :groups
    ]
