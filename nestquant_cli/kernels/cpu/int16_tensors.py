"""Int8 rows times tokens of 16 bits on the CPU, on torch tensors."""

import numpy as np
import torch
from torch import Tensor

from ...e8.code import BLOCK
from ...rotation.seeds import Seed
from ..contract.constants import MOST_ENTRIES
from ..reference import inputs as reference_inputs
from .amx import ROWS, STEP, TOKENS
from .inputs import plan_of, sides
from .instructions import kind
from .int16 import round_rotated, round_rows
from .int16_product import multiply_blocks
from .threads import share

NOTHING_MORE = (np.empty(0, np.float32),) * 3
_WHOLE = STEP * TOKENS // 4  # words of a tile and digit: those of STEP coordinates


def to_int16(x: Tensor, order: int, seed: Seed | None) -> tuple[Tensor, Tensor]:
    """Rotates tokens and rounds each to multiples of its scale: `contract.inputs.to_int16`.

    Returns:
        the digits (tiles of 16 tokens, 2, words) int32, as `int16.round_rotated` lays them out, and the scale.
    """
    assert order <= MOST_ENTRIES, "sums of so many products are no int32"
    plan = None if seed is None else plan_of(order, seed)
    if plan is None:
        rotated = reference_inputs.rotate_tokens(x, order, seed).contiguous()
        return _rounded(rotated, torch.arange(len(x)), _tiles([len(x)])[1])
    digits, scale = _room(-(-len(x) // TOKENS), order), torch.empty(len(x))
    fixed = *sides(x), plan, digits.numpy(), scale.numpy()
    share(round_rotated.on_team, fixed, len(x), order // BLOCK, TOKENS)
    return digits, scale


def int16_product(tokens: Tensor, scale: Tensor, v: Tensor, row_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """diag(row_scale)·V x of tokens that `to_int16` gave: `contract.products.int16_product`."""
    tiles, first_of = _tiles([len(scale)])
    return _product(tokens, scale, tiles, first_of, [v], [row_scale], dtype)


def experts_by_int16(
    x: Tensor, taken: Tensor, ends: list[int], v: list[Tensor], row_scale: list[Tensor], dtype: torch.dtype
) -> Tensor:
    """`contract.products.experts_product` with tokens of 16 bits."""
    tiles, first_of = _tiles(ends)
    digits, scale = _rounded(x, taken, first_of)
    return _product(digits, scale, tiles, first_of, v, row_scale, dtype)


def _tiles(ends: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """The first tile of each expert, and the first pair of each tile; each time with the number of all behind it."""
    starts = [0, *ends[:-1]]
    firsts = [np.arange(start, end, TOKENS) for start, end in zip(starts, ends, strict=True)]
    counts = np.array([0, *(len(each) for each in firsts)], np.int64)
    return np.cumsum(counts), np.concatenate([*firsts, ends[-1:]]).astype(np.int64)


def _room(tiles: int, order: int) -> Tensor:
    return torch.empty(tiles, 2, -(-order // STEP) * _WHOLE, dtype=torch.int32)


def _rounded(x: Tensor, taken: Tensor, first_of: np.ndarray) -> tuple[Tensor, Tensor]:
    order, tiles = x.shape[1], len(first_of) - 1
    digits, scale = _room(tiles, order), torch.empty(len(taken))
    fixed = x.numpy(), taken.numpy(), first_of, digits.numpy(), scale.numpy()
    share(round_rows.on_team, fixed, tiles, TOKENS * order // BLOCK)
    return digits, scale


def _product(
    digits: Tensor,
    scale: Tensor,
    tiles: np.ndarray,
    first_of: np.ndarray,
    v: list[Tensor],
    row_scale: list[Tensor],
    dtype: torch.dtype,
) -> Tensor:
    rows, order = v[0].shape
    narrow = dtype == torch.bfloat16
    out = torch.empty(len(scale), rows, dtype=torch.bfloat16 if narrow else torch.float32)
    addresses = np.array([(a.data_ptr(), b.data_ptr()) for a, b in zip(v, row_scale, strict=True)], np.int64)
    fixed = digits.numpy(), scale.numpy(), NOTHING_MORE, first_of, tiles, addresses, rows, order, kind(), *sides(out)
    share(multiply_blocks.on_team, fixed, len(v) * -(-rows // ROWS), ROWS * order // BLOCK)
    return out if narrow else out.to(dtype)
