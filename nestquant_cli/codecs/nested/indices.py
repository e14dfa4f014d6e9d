"""The multiplier indices of packed words: the part of a word that the decoded integers do not show."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ...e8.code import NestedCode
from ...kernels import for_device

_NIBBLE = 16


def multiplier_indices(words: Tensor, entries: int, code: NestedCode) -> Tensor:
    """Index of the multiplier of each block.

    Args:
        words: (rows, row_bytes) uint8.
        entries: entries in a row, a multiple of 8.
        code: the nested code.

    Returns:
        (rows, entries/8) uint8; the largest index for words that no encoder writes.
    """
    return for_device(words.device).multiplier_indices(words, entries, code)


def join_indices(index: Tensor, k: int) -> Tensor:
    """Two indices (rows, blocks) uint8 a byte where k ≤ 16 allows it: (rows, ⌈blocks/2⌉), else as they are."""
    if k > _NIBBLE:
        return index
    index = F.pad(index, (0, index.shape[1] % 2))
    return index[:, ::2] | (index[:, 1::2] << 4)


def split_indices(joined: Tensor, blocks: int, k: int) -> Tensor:
    """The inverse of `join_indices`: (rows, blocks) uint8."""
    if k > _NIBBLE:
        return joined
    return torch.stack([joined & 15, joined >> 4], dim=2).flatten(1)[:, :blocks].contiguous()
