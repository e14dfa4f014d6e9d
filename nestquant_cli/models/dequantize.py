"""Weights in FP8 and MXFP4, de-quantized by the rules of their formats.

FP8 with block scales: a matrix q (rows, columns) in 8-bit floats and its scales s, one for each block of b × c entries,
`weight_block_size` in config.json, the last blocks of rows and columns being as large as what is left. The entry is

    W[i, j] = q[i, j] · s[i // b, j // c]

in float32, rounded to the dtype that the model is loaded in. A single scale is one for all entries. The scales are
named like the matrix, with `_scale_inv` behind it.

MXFP4: `NAME_blocks` (…, rows, groups, 16) uint8 has two 4-bit floats in a byte, the low half first, `NAME_scales`
(…, rows, groups) uint8 an exponent for 32 of them. The entry is float · 2^(exponent − 127), exact in bfloat16, and the
tensor `NAME` has rows and columns exchanged, (…, 32 · groups, rows): so the modules that have it multiply.

transformers has the same rules, with a fault in the first: it takes all blocks for equally large, and a matrix of 192
rows with blocks of 128 comes out wrong.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..base.errors import NestQuantError
from .other_methods import Method
from .shards import ComputedEntry, Entry, read_part, read_tensor

Place = tuple[Path, Entry]  # a tensor of a file

_SCALES = "_scale_inv"
_BLOCKS, _EXPONENTS = "_blocks", "_scales"
_OF_INPUTS = ".activation_scale"  # belongs to the way an FP8 model is computed
_FLOATS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # of 4 bits, of which the first is the sign
_BIAS = 127  # of an exponent of 8 bits


def dequantized(method: Method, stored: Mapping[str, Place], name: str) -> dict[str, Place]:
    """The tensors that the model would have in 16 bits, from those that its files have.

    Args:
        method: the method by which the weights are stored; `method.dequantized` holds.
        stored: file and entry of every tensor by name.
        name: what errors call the model.

    Returns:
        file and entry of every tensor; those that are de-quantized when they are read are float32 or bfloat16.

    Raises:
        NestQuantError: a tensor lacks its scales, or has scales of another form.
    """
    try:
        return _mxfp4(stored) if method.name == "mxfp4" else _fp8(stored, method.settings.get("weight_block_size"))
    except ValueError as error:
        raise NestQuantError(
            f"the weights of {name} are quantized already, by {method.label}, in a form that is not known ({error})",
            "nothing was quantized",
            "give the original model in 16 or 32 bits, or its conversion to them",
        ) from error


def _fp8(stored: Mapping[str, Place], block: Any) -> dict[str, Place]:
    found: dict[str, Place] = {}
    for name, (path, entry) in stored.items():
        scales = stored.get(name + _SCALES)
        if scales is not None:
            found[name] = path, _scaled(name, (path, entry), scales, block)
        elif entry.dtype.startswith("float8"):
            raise ValueError(f"{name} has no {name.rpartition('.')[2]}{_SCALES}")
        elif not name.endswith((_SCALES, _OF_INPUTS)):
            found[name] = path, entry
    return found


def _scaled(name: str, matrix: Place, scales: Place, block: Any) -> "BlockScaled":
    shape, grid = matrix[1].shape, scales[1].shape
    if not matrix[1].dtype.startswith("float8_e4m3") or not scales[1].dtype.startswith(("float", "bfloat")):
        raise ValueError(f"{name} is of {matrix[1].dtype}, its scales of {scales[1].dtype}")
    if all(size == 1 for size in grid):
        sizes = shape[-2:]
    elif isinstance(block, list | tuple) and len(block) == 2 and all(type(size) is int and size > 0 for size in block):
        sizes = tuple(block)
    else:
        raise ValueError(f"weight_block_size is {block}")
    whole = len(shape) < 2 or all(size == 1 for size in grid)
    if not whole and grid != (*shape[:-2], *(-(-rows // size) for rows, size in zip(shape[-2:], sizes, strict=True))):
        raise ValueError(f"{name} of shape {shape} has scales of shape {grid} for blocks of {tuple(sizes)}")
    return BlockScaled("float32", shape, 0, 0, 0, matrix, scales, None if whole else (sizes[0], sizes[1]))


def _mxfp4(stored: Mapping[str, Place]) -> dict[str, Place]:
    found: dict[str, Place] = {}
    for name, (path, entry) in stored.items():
        plain = name.removesuffix(_BLOCKS)
        exponents = stored.get(plain + _EXPONENTS)
        if name.endswith(_BLOCKS) and exponents is not None:
            found[plain] = path, _blocks(name, (path, entry), exponents)
        elif not name.endswith(_EXPONENTS) or name.removesuffix(_EXPONENTS) + _BLOCKS not in stored:
            found[name] = path, entry
    return found


def _blocks(name: str, blocks: Place, exponents: Place) -> "Blocks":
    shape = blocks[1].shape
    if len(shape) < 3 or shape[:-1] != exponents[1].shape or {blocks[1].dtype, exponents[1].dtype} != {"uint8"}:
        raise ValueError(f"{name} of {blocks[1].dtype} {shape} has scales of {exponents[1].dtype} {exponents[1].shape}")
    *outer, rows, groups, half = shape
    return Blocks("bfloat16", (*outer, groups * 2 * half, rows), 0, 0, 0, blocks, exponents)


@dataclass(frozen=True)
class BlockScaled(ComputedEntry):
    """A matrix in FP8 with its scales.

    Attributes:
        matrix: (…, rows, columns) 8-bit floats.
        scales: one for each block; or a single one.
        block: rows and columns of a block; None where there is a single scale.
    """

    matrix: Place
    scales: Place
    block: tuple[int, int] | None

    def compute(self) -> Tensor:
        return self._values(read_tensor(*self.matrix), read_tensor(*self.scales))

    def part(self, index: int) -> Tensor:
        if len(self.shape) < 3 or len(self.scales[1].shape) != len(self.shape) or self.scales[1].shape[0] == 1:
            return super().part(index)
        return self._values(*(read_part(*place, index, self.shape[0]) for place in (self.matrix, self.scales)))

    def _values(self, matrix: Tensor, scales: Tensor) -> Tensor:
        values, scales = matrix.float(), scales.float()
        if self.block is not None:
            for dim, size in zip((-2, -1), self.block, strict=True):
                scales = scales.repeat_interleave(size, dim).narrow(dim, 0, values.shape[dim])
        return values.mul_(scales)


@dataclass(frozen=True)
class Blocks(ComputedEntry):
    """A tensor in MXFP4.

    Attributes:
        blocks: (…, rows, groups, 16) uint8, two numbers in a byte.
        exponents: (…, rows, groups) uint8.
    """

    blocks: Place
    exponents: Place

    def compute(self) -> Tensor:
        return self._values(read_tensor(*self.blocks), read_tensor(*self.exponents))

    def part(self, index: int) -> Tensor:
        if len(self.shape) < 3:
            return super().part(index)
        return self._values(*(read_part(*place, index, self.shape[0]) for place in (self.blocks, self.exponents)))

    def _values(self, blocks: Tensor, exponents: Tensor) -> Tensor:
        table = torch.tensor(_FLOATS + tuple(-value for value in _FLOATS), dtype=torch.bfloat16)
        low, high = table.repeat(16), table.repeat_interleave(16)
        pairs = torch.stack([low, high], -1)  # (256, 2): both numbers of every byte
        values = pairs[blocks.int()].flatten(-2)  # (…, rows, groups, 32)
        scales = torch.exp2(exponents.float() - _BIAS)
        values = (values * scales.bfloat16()[..., None]).flatten(-2)
        return values.transpose(-1, -2).contiguous()
