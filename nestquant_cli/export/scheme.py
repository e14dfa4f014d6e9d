"""How the compressed-tensors format says what a packed checkpoint holds: integers, scales, transforms of inputs.

A weight is W·Rᵀ = diag(scale)·V with V integer, so V is stored as the format's symmetric integers and the scales as its
scales. R is an online transform of the input: x becomes R x in front of the product. What cannot be said is refused.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..base.errors import NestQuantError
from ..codecs.protocol import Grid, NoGridError
from ..codecs.registry import codec_of
from ..e8.digits import pack_digits
from ..modules.inputs import padded_size
from ..modules.layout import Layout, LinearLayout
from ..rotation.orders import block_orders
from ..rotation.transform import rotation

HADAMARD, DENSE = "rotation", "rotation_dense"  # names of the transforms; modules get one as `NAME_input`
_WORD = 32  # bits of the integers that digits are packed into; so many digits fill whole ones at any width
# The format knows Hadamard matrices of 1, 2 and the multiples of 4 up to this, times powers of two.
_LARGEST_KNOWN = 256


def weight_arguments(grid: Grid) -> dict[str, Any]:
    """The format's arguments for weights on this grid."""
    strategy = {"strategy": "channel"} if grid.group is None else {"strategy": "group", "group_size": grid.group}
    return {"num_bits": grid.bits, "type": "int", "symmetric": True, "dynamic": False, **strategy}


def grid_of(layout: Layout) -> Grid:
    """The integers that all matrices of a layout are made of.

    Raises:
        NestQuantError: the format cannot hold them.
    """
    if layout.weight_shape is None:
        raise cannot("its weights are in 16 bits", "export a checkpoint with quantized weights")
    if layout.reflections:
        raise cannot("its rotations are learned, one for each input", "quantize with --rotation hadamard")
    if layout.parts:
        raise cannot("some inputs are rotated in parts, for tensor parallel", "quantize without --tensor-parallel")
    if layout.factors:
        raise cannot("some inputs have factors of their channels", "quantize with --no-channel-scales")
    grids = {_grid(name, linear, layout) for name, linear in layout.linears.items()}
    if len(grids) != 1:
        raise cannot("its matrices have integers of several widths", "quantize with one code for all")
    return grids.pop()


def _grid(name: str, linear: LinearLayout, layout: Layout) -> Grid:
    if layout.rotation != "none" and linear.in_features != padded_size(linear.in_features):
        what = f"{name} has {linear.in_features} inputs, which are padded to a multiple of 8 and then rotated"
        raise cannot(what, "quantize with --rotation none")
    if linear.code is None:
        raise cannot(f"{name} has weights in 16 bits", "quantize the weights of all matrices")
    try:
        return codec_of(linear.code).grid(linear.code, linear.in_features, name)
    except NoGridError as error:
        raise cannot(error.cause, error.remedy) from error


def cannot(cause: str, remedy: str) -> NestQuantError:
    """The error for what the format cannot say."""
    what = f"the compressed-tensors format cannot hold this checkpoint: {cause}"
    return NestQuantError(what, "nothing was written", remedy)


def matrix_tensors(name: str, linear: LinearLayout, grid: Grid, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A packed matrix as the format has it.

    Args:
        stored: its tensors in the packed checkpoint, by the name that follows that of the Linear.

    Returns:
        `weight_packed` (out, ⌈in·bits/32⌉) int32, `weight_scale` (out, 1 or groups) bfloat16, `weight_shape` (2) int64,
        by full name.
    """
    V = integers(linear, stored)
    scale = stored["row_scale"].view(torch.bfloat16)
    return {
        f"{name}.weight_packed": packed_integers(V, grid.bits),
        f"{name}.weight_scale": scale[:, None] if grid.group is None else scale,
        f"{name}.weight_shape": torch.tensor(V.shape),
    }


def integers(linear: LinearLayout, stored: Mapping[str, Tensor]) -> Tensor:
    """V (out_features, in_features) int8 of a matrix that `grid_of` accepts, without padding."""
    assert linear.code is not None
    V: Tensor = codec_of(linear.code).integers(linear.code, stored, padded_size(linear.in_features))
    return V[:, : linear.in_features]


def packed_integers(V: Tensor, bits: int) -> Tensor:
    """V (rows, columns) int8 as the format packs it: digits v + 2^(bits−1), digit j of a row at its bit bits·j."""
    digits = (V.to(torch.int16) + (1 << (bits - 1))).to(torch.uint8)
    digits = F.pad(digits, (0, -V.shape[1] % _WORD))
    words = pack_digits(digits, bits).view(torch.int32)
    return words[:, : -(-V.shape[1] * bits // _WORD)].contiguous()


def transforms(layout: Layout, others: list[str]) -> dict[str, dict[str, Any]]:
    """`config_groups` of the format's transform config, empty without a rotation.

    Args:
        others: names of the model's Linears that are not quantized.
    """
    if layout.rotation == "none":
        return {}
    names: dict[str, list[str]] = {}
    for name, linear in layout.linears.items():
        names.setdefault(transform_name(linear.in_features), []).append(name)
    types = {HADAMARD: "random-hadamard", DENSE: "random-matrix"}
    groups = {}
    for name, targets in sorted(names.items()):
        which = {"targets": ["Linear"], "ignore": others} if len(names) == 1 else {"targets": targets}
        groups[name] = {"type": types[name], "precision": "torch.float32", "apply": [which | {"location": "input"}]}
    return groups


def transform_name(width: int) -> str:
    """HADAMARD where R is one Hadamard matrix of an order that the format knows; else DENSE."""
    odd = width // (width & -width)
    known = width <= 2 or odd == 1 or (width % 4 == 0 and 4 * odd <= _LARGEST_KNOWN)
    return HADAMARD if known and len(block_orders(width)) == 1 else DENSE


def transform_weight(width: int, seed: int) -> Tensor:
    """What the format multiplies an input by from the right, (width, width): Rᵀ, times √width where it divides by that.

    The entries of the second kind are ±1, so bfloat16 holds them; the others are float32.
    """
    R = rotation(width, seed).matrix()
    if transform_name(width) == DENSE:
        return R.t().contiguous()
    return torch.sign(R).t().to(torch.bfloat16).contiguous()
