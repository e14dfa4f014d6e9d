"""Which codec a shape belongs to, and what every codec is asked for, whichever it is."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..kernels import for_device
from ..lattice.code import BLOCK, MOST_MULTIPLIERS, NestedCode
from ..lattice.shape import CodeShape, shape_for_bits, shape_for_q
from .fit import ScaledCode, fit_scales, sample_blocks
from .integer import IntegerCode, IntegerRounder
from .protocol import Rounder, Shape, TensorForms, VectorCode, WeightCode

NAMES = ("nestquant", "integer")


def shape_of(codec: str, bits: float, settings: Any, place: str) -> Shape:
    """The shape that a recipe asks for.

    Args:
        codec: one of NAMES.
        bits: of an entry.
        settings: of the codec, a mapping or None: {q, k} of nestquant, {symmetric, group, clip} of integer.
        place: names the settings in errors.

    Raises:
        ValueError: bits or settings that the codec does not have.
    """
    if codec == "integer":
        return _integer_shape(bits, settings, place)
    if settings is None:
        return shape_for_bits(float(bits))
    if (
        not isinstance(settings, dict)
        or set(settings) != {"q", "k"}
        or any(type(v) is not int for v in settings.values())
    ):
        raise ValueError(f"{place} {settings} is not of the form {{q: 14, k: 4}}")
    if not 2 <= settings["q"] <= 256 or not 1 <= settings["k"] <= MOST_MULTIPLIERS:
        raise ValueError(f"q and k of {place} are {settings}, not 2 to 256 and 1 to {MOST_MULTIPLIERS}")
    return shape_for_q(settings["q"], settings["k"])


def _integer_shape(bits: float, settings: Any, place: str) -> IntegerCode:
    if bits != int(bits):
        raise ValueError(f"bits {bits:g} of an integer code are not a whole number")
    if settings is None:
        return IntegerCode(int(bits))
    if not isinstance(settings, dict) or not set(settings) <= {"symmetric", "group", "clip"}:
        raise ValueError(f"{place} {settings} is not of the form {{symmetric: true, group: 64, clip: 0.9}}")
    clip = settings.get("clip")
    return IntegerCode(
        int(bits), settings.get("symmetric", True), settings.get("group"), None if clip == "mse" else clip
    )


def shape_from(value: dict[str, Any]) -> Shape:
    """The shape that config.json describes, of any codec but nestquant; raises ValueError where it is none."""
    if value.get("codec") != IntegerCode.codec:
        raise ValueError(f"there is no codec {value.get('codec')!r}")
    return IntegerCode.from_dict(value)


def fit_vectors(rows: Tensor, shape: Shape, seed: int) -> VectorCode:
    """The code for rows (n, entries) that come later, fitted to these; any code does for zeros alone."""
    if isinstance(shape, IntegerCode):
        return shape.fit(rows[torch.isfinite(rows).all(1)])
    assert isinstance(shape, CodeShape)
    return fit_rows(rows, shape, seed)


def fit_rows(x: Tensor, shape: CodeShape, seed: int) -> ScaledCode:
    """The nested code for rows x (rows, entries), fitted to a sample of their blocks."""
    blocks = sample_blocks(x, seed)
    return fit_scales(blocks if len(blocks) else blocks.new_zeros(1, BLOCK), shape)


def vector_from(fitted: dict[str, Any], shape: Shape) -> VectorCode:
    """The code of a shape and of what `VectorCode.fitted` said; raises ValueError where it is none."""
    if isinstance(shape, IntegerCode):
        clip = fitted.get("clip")
        if clip is None:
            raise ValueError("an integer code has no clip")
        return IntegerCode(shape.bits, shape.symmetric, shape.group, clip)
    assert isinstance(shape, CodeShape)
    return ScaledCode(shape.with_multipliers(tuple(fitted["multipliers"])), float(fitted["unit"]))


def weight_code(shape: Shape, multipliers: tuple[int, ...] | None) -> WeightCode:
    """The code of a matrix: the shape, for a nested code with the multipliers that were fitted to it."""
    if isinstance(shape, IntegerCode):
        return shape
    assert isinstance(shape, CodeShape) and multipliers is not None
    return shape.with_multipliers(multipliers)


def decoded(code: WeightCode, tensors: Mapping[str, Tensor], entries: int) -> Tensor:
    """The stored matrix (rows, entries) float32, in its rotated basis.

    Args:
        code: of the weights.
        tensors: as `code.tensors` describes them.
        entries: of a row.
    """
    scale = tensors["row_scale"].view(torch.bfloat16).float()
    if isinstance(code, IntegerCode):
        v = code.decode(tensors["words"], tensors.get("zeros"), entries).float()
        return v * (scale[:, None] if code.group is None else code.spread(scale, entries))
    assert isinstance(code, NestedCode)
    return for_device(scale.device).unpack(tensors["words"], entries, code).float() * scale[:, None]


def stored_tensors(shape: Shape, rows: int, entries: int) -> TensorForms:
    """Shape and dtype of what a matrix (rows, entries) is stored in, by name, before anything is fitted."""
    multipliers = tuple(range(1, shape.k + 1)) if isinstance(shape, CodeShape) else None
    return weight_code(shape, multipliers).tensors(rows, entries)


def rounder(target: Tensor, rows: list[int], shape: Shape) -> Rounder:
    """What rounds a matrix of stacked ones with `rows` rows each, of any codec but nestquant."""
    assert isinstance(shape, IntegerCode)
    return IntegerRounder(target, rows, shape)


def columns_of(shape: Shape) -> int:
    """Columns that feedback goes over at once."""
    return IntegerRounder.columns if isinstance(shape, IntegerCode) else BLOCK
