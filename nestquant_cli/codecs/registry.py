"""The codecs by name, and the codec that a shape or a code belongs to."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..base.fields import Fields
from .integer.codec import IntegerCodec
from .lattice.codec import LatticeCodec
from .nested.codec import NestedCodec
from .protocol import Codec, VectorCodec
from .vectors import VectorCode
from .weights import Shape, WeightCode

CODECS: dict[str, Codec[Any, Any]] = {
    codec.name: codec
    for codec in (
        NestedCodec(),
        IntegerCodec(),
        LatticeCodec(),
    )
}

VECTOR_CODECS = tuple(name for name, codec in CODECS.items() if isinstance(codec, VectorCodec))


def codec_of(coded: Shape | WeightCode) -> Codec[Any, Any]:
    """The codec of a shape or of a code of weights."""
    return CODECS[coded.codec]


def vector_codec(name: str) -> VectorCodec[Any, Any]:
    """The codec `name` for vectors; raises ValueError where it codes weights only."""
    codec = CODECS[name]
    if not isinstance(codec, VectorCodec):
        raise ValueError(f"{name} codes weights only, activations, keys and values stay in 16 bits")
    return codec


def weights_only(name: str) -> bool:
    """Whether the codec `name` leaves activations, keys and values in 16 bits."""
    return not isinstance(CODECS[name], VectorCodec)


def shape_of(name: str, bits: float, settings: Any, part: str) -> Shape:
    """The shape that a recipe asks of the codec `name`.

    Args:
        name: one of CODECS.
        bits: bits of an entry.
        settings: mapping of the codec's settings, or None for its defaults.
        part: "weight", "act" or "kv"; errors call the settings by it, as `act_code`.

    Raises:
        ValueError: the codec has no such bits or settings, or codes weights only.
    """
    codec = CODECS[name] if part == "weight" else vector_codec(name)
    shape: Shape = codec.shape(bits, settings, f"{part}_code")
    return shape


def shape_from(value: Any, place: str = "code") -> Shape:
    """The shape that config.json describes, under `place` in errors; raises ValueError where it is none."""
    fields = Fields(value, place)
    name = fields.value.get("codec", NestedCodec.name)
    if not isinstance(name, str) or name not in CODECS:
        raise ValueError(f"there is no codec {name!r}")
    shape: Shape = CODECS[name].shape_from(fields)
    return shape


def fit_vectors(rows: Tensor, shape: Shape, seed: int) -> VectorCode:
    """The code for vectors that come later, fitted to rows (n, entries) float32 of them, as `VectorCodec.fit`."""
    return vector_codec(shape.codec).fit(rows, shape, seed)


def fit_heads(vectors: Tensor, shape: Shape, seed: int, centering: bool) -> VectorCode:
    """The code for vectors of several heads, fitted to (heads, n, entries) float32, as `VectorCodec.fit_heads`."""
    return vector_codec(shape.codec).fit_heads(vectors, shape, seed, centering)


def vector_from(value: Any, shape: Shape, place: str = "code") -> VectorCode:
    """The inverse of `VectorCode.fitted`, under `place` in errors; raises ValueError where it is none."""
    return vector_codec(shape.codec).vector_from(Fields(value, place), shape)


def decoded(code: WeightCode, tensors: Mapping[str, Tensor], entries: int) -> Tensor:
    """A stored matrix (rows, entries) float32, in its rotated basis, from the tensors that `code.tensors` describes."""
    values: Tensor = codec_of(code).decode(code, tensors, entries)
    return values
