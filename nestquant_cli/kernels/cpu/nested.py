"""Nested codes on the CPU: compiled loops on torch tensors, which they read and write without a copy.

The compiled loops release Python's lock and run on as many threads as torch is set to (see `threads`).
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ...e8.code import BLOCK, NestedCode, row_bytes
from ..contract.constants import OVERLOADED
from ..reference import nested as reference
from . import encode as cpu_encode
from . import pack as cpu_pack
from . import words as cpu_words
from .threads import share


def quantize(x: Tensor, scale: Tensor, code: NestedCode) -> tuple[Tensor, Tensor, int]:
    """Rounds rows to the code (`contract.codes.quantize`): tiles of 64 blocks, each under every multiplier."""
    reference.check_rows(x, scale)
    rows, entries = x.shape
    width = entries // BLOCK
    x, scale = x.float().contiguous().view(-1), scale.float().contiguous()
    v = torch.empty(rows, entries, dtype=reference.entry_type(code))
    index = torch.empty(rows, width, dtype=torch.uint8)
    fixed = x.numpy(), (1 / scale).numpy(), width, multipliers_of(code), np.float32(code.q), np.float32(code.limit)
    choices = index.view(-1).numpy()
    filled = bytes_of(v), not code.int8, choices
    share(cpu_encode.quantize.on_team, (*fixed, *filled), rows * width)
    overloaded = choices == OVERLOADED
    choices[overloaded] = code.k - 1
    return v, index, int(np.count_nonzero(overloaded))


def pack(v: Tensor, index: Tensor, code: NestedCode) -> Tensor:
    """Packs integers and multiplier indices into words (`contract.codes.pack`), rows shared among threads."""
    packed = torch.empty(v.shape[0], row_bytes(v.shape[1], code.word_bits), dtype=torch.uint8)
    values, choices = v.contiguous().view(-1).numpy(), index.contiguous().view(-1).numpy()
    fixed = values, choices, index.shape[1], multipliers_of(code), code.q, code.word_bits, packed.numpy()
    share(cpu_pack.pack.on_team, fixed, v.shape[0], index.shape[1])
    return packed


def unpack(packed: Tensor, entries: int, code: NestedCode) -> Tensor:
    """Decodes rows of words to integers (`contract.codes.unpack`), blocks of all rows shared among threads."""
    width = row_bytes(entries, code.word_bits)
    if packed.shape[1] != width:
        raise ValueError(f"rows of {entries} entries need {width} bytes, not {packed.shape[1]}")
    v = torch.empty(packed.shape[0], entries, dtype=reference.entry_type(code))
    blocks = entries // BLOCK
    fixed = (
        packed.contiguous().numpy(),
        blocks,
        code.word_bits,
        code.q,
        multipliers_of(code),
        bytes_of(v),
        not code.int8,
    )
    share(cpu_words.unpack.on_team, fixed, packed.shape[0] * blocks)
    return v


def multiplier_indices(packed: Tensor, entries: int, code: NestedCode) -> Tensor:
    """Multiplier indices (rows, entries/8) uint8 of packed words; the largest for words that no encoder writes."""
    width = entries // BLOCK
    index = torch.zeros(packed.shape[0], width, dtype=torch.uint8)
    if code.k == 1:  # q⁸ may not even fit 64 bits
        return index
    fixed = packed.contiguous().numpy(), code.word_bits, np.uint64(code.q**BLOCK), code.k, index.numpy()
    share(cpu_words.indices.on_team, fixed, packed.shape[0], width)
    return index


def block_errors(x: Tensor, scales: Tensor, multipliers: Tensor, q: int, limit: int) -> Tensor:
    """Squared error of each block under each candidate (`contract.codes.block_errors`), blocks shared among threads."""
    errors = torch.empty(x.shape[0], scales.shape[0], dtype=torch.float32)
    steps = (scales.float() * multipliers).numpy()
    bounds = (torch.div(limit, multipliers, rounding_mode="floor") + 0.5).float().numpy()
    fixed = x.float().contiguous().view(-1).numpy(), steps, bounds, np.float32(q), errors.numpy()
    share(cpu_encode.block_errors.on_team, fixed, x.shape[0], len(steps))
    return errors


def bytes_of(v: Tensor) -> np.ndarray:
    """The bytes of v as flat int32."""
    return v.view(-1).view(torch.int32).numpy()


@lru_cache(maxsize=256)
def multipliers_of(code: NestedCode) -> np.ndarray:
    """As the compiled loops take them."""
    return np.asarray(code.multipliers, dtype=np.float32)
