"""Decoding of packed rows on the GPU."""

import torch
from torch import Tensor

from ...e8.code import BLOCK, NestedCode, row_bytes
from ..reference import nested as reference
from .launch import on, tables, word_rows
from .words import unpack_kernel

_TILE = 128  # words of a program, one for each of its 4·32 threads


def unpack(packed: Tensor, entries: int, code: NestedCode) -> Tensor:
    """Decodes rows of words to integers (`contract.codes.unpack`): one thread a word."""
    width = row_bytes(entries, code.word_bits)
    if packed.shape[1] != width:
        raise ValueError(f"rows of {entries} entries need {width} bytes, not {packed.shape[1]}")
    v = torch.empty(packed.shape[0], entries, dtype=reference.entry_type(code), device=packed.device)
    if v.numel():
        words, stride = word_rows(packed, code)
        blocks, total = entries // BLOCK, v.numel() // BLOCK
        multipliers, _ = tables(code, packed.device)
        with on(packed.device):
            unpack_kernel[(-(-total // _TILE),)](
                words, v, multipliers, code.k - 1, blocks, stride, v.numel(), Q=code.q, BITS=code.word_bits, TILE=_TILE
            )
    return v
