"""Rotating and coding the inputs of Linears on the CPU, and what follows their product, on torch tensors.

The compiled loops take rotations whose factors are at most LARGEST_FACTOR. Orders with a larger one, and tokens that
are not rotated, are left to the reference, with this device's rounding.
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ...e8.code import BLOCK, NestedCode
from ...rotation.orders import atoms
from ...rotation.seeds import Seed, seeds_of_parts
from ...rotation.transform import factor_matrix, rotation
from ..reference import grid as reference_grid
from ..reference import inputs as reference
from ..reference import integers as reference_integers
from ..reference.nested import entry_type
from . import after_product as cpu_after
from . import grid as cpu_grid
from . import integers as cpu_integers
from . import nested
from . import tokens as cpu_tokens
from .nested import multipliers_of
from .rotate import LARGEST_FACTOR, TOKENS
from .threads import share

_NO_FLOATS = np.empty((0, 0), np.float32)
_NO_BITS = np.empty((0, 0), np.uint16)
_NO_ROW = np.empty(0, np.float32)
_NO_MARKS = np.empty(0, np.bool_)


def rotate(x: Tensor, order: int, seed: Seed | None) -> Tensor:
    """R x of tokens (tokens, features ≤ order), padded with zeros: `contract.inputs.rotate_tokens`.

    Returns:
        (tokens, order) bfloat16 for bfloat16 that the compiled loops rotate, else float32.
    """
    plan = None if seed is None else plan_of(order, seed)
    if plan is None:
        return reference.rotate_tokens(x, order, seed)
    narrow = x.dtype == torch.bfloat16
    out = torch.empty(x.shape[0], order, dtype=torch.bfloat16 if narrow else torch.float32)
    fixed = *sides(x), plan, *sides(out)
    share(cpu_tokens.rotate.on_team, fixed, x.shape[0], order // BLOCK, TOKENS)
    return out


def encode(
    x: Tensor, order: int, seed: Seed | None, code: NestedCode, unit: float, center: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Rotates tokens and rounds each to the code in one pass over memory: `contract.inputs.encode_tokens`."""
    plan = None if seed is None else plan_of(order, seed)
    if plan is None:
        return reference.encode_tokens(x, order, seed, code, unit, center, nested)
    v = torch.empty(x.shape[0], order, dtype=entry_type(code))
    scale = torch.empty(x.shape[0])
    centered = None if center is None else torch.empty(x.shape[0], dtype=torch.bool)
    sizes = np.float32(unit), multipliers_of(code), np.float32(code.q), np.float32(code.limit)
    filled = v.view(torch.int32).numpy(), not code.int8, scale.numpy(), _or(_NO_MARKS, centered)
    share(
        cpu_tokens.encode.on_team,
        (*sides(x), plan, _or(_NO_ROW, center), *sizes, *filled),
        x.shape[0],
        order // BLOCK,
        TOKENS,
    )
    return v, scale, centered


def to_integers(x: Tensor, order: int, seed: Seed | None, bits: int, clip: float) -> tuple[Tensor, Tensor]:
    """Rotates tokens and rounds each to symmetric integers in one pass: `contract.inputs.to_integers`."""
    plan = None if seed is None else plan_of(order, seed)
    if plan is None:
        return reference_integers.to_integers(x, order, seed, bits, clip)
    v = torch.empty(x.shape[0], order, dtype=torch.int8)
    scale = torch.empty(x.shape[0])
    sizes = np.float32(clip), np.float32((1 << (bits - 1)) - 1)
    fixed = *sides(x), plan, *sizes, v.view(torch.int32).numpy(), scale.numpy()
    share(cpu_integers.encode.on_team, fixed, x.shape[0], order // BLOCK, TOKENS)
    return v, scale


def to_grid(x: Tensor, order: int, seed: int) -> tuple[Tensor, Tensor]:
    """Rotates tokens and rounds each to int8 multiples of 2^exponent: `contract.inputs.to_grid`.

    Orders with a factor that is too large for the pass are rotated by the reference.
    """
    plan = plan_of(order, seed)
    if plan is None:
        return reference_grid.to_grid(x, order, seed)
    v = torch.empty(x.shape[0], order, dtype=torch.int8)
    exponent = torch.empty(x.shape[0], dtype=torch.int8)
    fixed = *sides(x), plan, v.numpy(), exponent.numpy()
    share(cpu_grid.round_tokens.on_team, fixed, x.shape[0], order // BLOCK, TOKENS)
    return v, exponent


def scaled(
    sums: Tensor,
    token_scale: Tensor,
    row_scale: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    centered: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """(sums · token_scale + centered · shift) · row_scale + bias in one pass.

    Args:
        sums: (tokens, rows) int32.
        token_scale: (tokens,) float32.
        row_scale, bias, shift: (rows,) float32, the last two may be None.
        dtype: dtype of the result (tokens, rows).
        centered: (tokens,) bool; needed with a shift.
    """
    narrow = dtype == torch.bfloat16
    out = torch.empty(sums.shape, dtype=torch.bfloat16 if narrow else torch.float32)
    token = token_scale.numpy(), _or(_NO_MARKS, centered), _or(_NO_ROW, shift)
    fixed = sums.numpy(), *token, row_scale.numpy(), _or(_NO_ROW, bias), *sides(out)
    share(cpu_after.epilogue.on_team, fixed, sums.shape[0], sums.shape[1] // BLOCK)
    return out.to(dtype)


def _or(nothing: np.ndarray, values: Tensor | None) -> np.ndarray:
    return nothing if values is None else values.numpy()


def fingerprint(x: Tensor) -> Tensor | int:
    """64 bits of the contents of x, to see whether it was changed; a copy where x cannot be read as whole words."""
    if not x.is_contiguous() or x.nbytes % 8 or x.data_ptr() % 8:
        return reference.fingerprint(x)
    words = x.detach().view(-1).view(torch.uint8).numpy().view(np.uint64)
    return int(cpu_after.fingerprint(words))


def sides(x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """x as float32 or as bits of bfloat16, and nothing in the other's place."""
    if x.dtype == torch.bfloat16:
        return _NO_FLOATS, x.contiguous().view(torch.uint16).numpy()
    return x.float().contiguous().numpy(), _NO_BITS


def rotates(order: int, seed: int) -> bool:
    """Whether the compiled pass takes all factors of the order."""
    return plan_of(order, seed) is not None


@lru_cache(maxsize=4096)
def plan_of(order: int, seed: Seed, parts: int = 1) -> tuple[np.ndarray, ...] | None:
    """What the loops of `tokens` take of a rotation, or of one in equal parts; None where a factor is too large.

    Factors beside the signs are part of its scale, so that they cost nothing.
    """
    rotations = [rotation(order // parts, of_part) for of_part in seeds_of_parts(seed, parts)]
    R = rotations[0]
    numbers, factors, signs = [], [], []
    for size in R.block_orders * parts:
        groups = _grouped(atoms(size))
        matrices = [factor_matrix(group) for group in groups]
        if any(len(matrix) > LARGEST_FACTOR for matrix in matrices):
            return None
        numbers.append(len(matrices))
        factors += [len(matrix) for matrix in matrices]
        signs += [matrix.astype(np.float32).ravel() for matrix in matrices]
    signs.append(np.ones(1, np.float32))  # an order of 1 has no factors, and nothing may be empty
    whole = (np.asarray(list(numbers_of), np.int64) for numbers_of in (R.block_orders * parts, numbers, factors or [1]))
    return np.concatenate([each.scale for each in rotations]), *whole, np.concatenate(signs)


def _grouped(factors: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Twos taken together, at most four; on the fastest axis one, two or four, as `rotate.transform` has it."""
    twos = factors.count(2)
    groups = [(factor,) for factor in factors if factor != 2]
    last = 4 if twos >= 4 else min(twos, 2)
    rest = twos - last
    sizes = [rest % 4] * bool(rest % 4) + [4] * (rest // 4) + [last] * bool(last)
    return groups + [(2,) * size for size in sizes]
