"""The codecs by name, and what is asked of whichever a shape or a code belongs to."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..e8.shape import CodeShape
from .integer.codec import Integers
from .lattice.codec import Glvq
from .nested.centered import fit_centered
from .nested.codec import NestQuant
from .protocol import Codec, RoundedRows, Rounder, Shape, TensorForms, WeightCode
from .vectors import VectorCode

_CODECS: tuple[Codec, ...] = (NestQuant(), Integers(), Glvq())
CODECS = {codec.name: codec for codec in _CODECS}


def shape_of(codec: str, bits: float, settings: Any, place: str) -> Shape:
    """See `Codec.shape`; `codec` is one of CODECS."""
    return CODECS[codec].shape(bits, settings, place)


def shape_from(value: dict[str, Any]) -> Shape:
    """The shape that config.json describes; raises ValueError where it is none."""
    name = value.get("codec")
    if not isinstance(name, str) or name not in CODECS:
        raise ValueError(f"there is no codec {name!r}")
    return CODECS[name].shape_from(value)


def fit_vectors(rows: Tensor, shape: Shape, seed: int) -> VectorCode:
    """See `Codec.fit`."""
    return CODECS[shape.codec].fit(rows, shape, seed)


def fit_heads(vectors: Tensor, shape: Shape, seed: int, centering: bool) -> VectorCode:
    """The code for vectors of several heads, fitted to vectors (heads, n, entries); an input of Linears is one head.

    Args:
        centering: whether the code may have a center for each head; only nested codes have any.
    """
    if centering and isinstance(shape, CodeShape):
        return fit_centered(vectors, shape, seed)
    return fit_vectors(vectors.flatten(0, 1), shape, seed)


def vector_from(fitted: dict[str, Any], shape: Shape) -> VectorCode:
    """See `Codec.vector_from`."""
    return CODECS[shape.codec].vector_from(fitted, shape)


def weight_code(shape: Shape, multipliers: tuple[int, ...] | None) -> WeightCode:
    """See `Codec.weight_code`."""
    return CODECS[shape.codec].weight_code(shape, multipliers)


def decoded(code: WeightCode, tensors: Mapping[str, Tensor], entries: int) -> Tensor:
    """See `Codec.decoded`."""
    return CODECS[code.codec].decoded(code, tensors, entries)


def stored_tensors(shape: Shape, rows: int, entries: int) -> TensorForms:
    """Shape and dtype of what a matrix (rows, entries) is stored in, by name, before anything is fitted."""
    return weight_code(shape, None).tensors(rows, entries)


def rounder(target: Tensor, rows: list[int], shape: Shape, seed: int) -> Rounder | None:
    """See `Codec.rounder`."""
    return CODECS[shape.codec].rounder(target, rows, shape, seed)


def search(
    target: Tensor, rows: list[int], shape: Shape, seed: int, factor: Tensor | None, paths: int
) -> RoundedRows | None:
    """See `Codec.search`; None where the codec has none."""
    return None if columns_of(shape) else CODECS[shape.codec].search(target, rows, shape, seed, factor, paths)


def columns_of(shape: Shape) -> int | None:
    """Columns that feedback goes over at once; None where the codec searches whole rows."""
    return CODECS[shape.codec].columns
