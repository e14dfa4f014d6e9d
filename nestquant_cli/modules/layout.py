"""What a packed checkpoint says of itself: which matrices are coded how. `modules.parse_layout` reads it."""

from dataclasses import asdict, dataclass, field
from typing import Any

from ..codecs.factored import FactoredCode
from ..codecs.registry import CODECS, codec_of
from ..codecs.vectors import VectorCode
from ..codecs.weights import Shape, TensorForms, WeightCode
from ..rotation.seeds import Seed, scaled, text_of
from .cache_codes import CacheCodes
from .inputs import padded_size
from .table_layout import TableLayout
from .unrounded import ALL_ROUNDED, Unrounded

QUANT_METHOD = "nestquant"
REFLECTORS = "turn.reflectors"  # stored tensor of an input with a learned rotation, after the name of the input
# 1: nested codes of one shape, the Hadamard rotation. 2: other codecs, rotations, a shape for a matrix. 3: centers.
# 4: lattices. 5: layers without codes in `cache`. 6: inputs in parts. 7: tables, factors (of keys, too), a shape for
# values or for single inputs, tokens that are unrounded. A checkpoint has the first version that suffices for it;
# codecs say which one has their codes.
FORMAT_VERSION = 7
ROTATIONS = ("none", "hadamard", "learned")


@dataclass(frozen=True)
class LinearLayout:
    """One quantized nn.Linear.

    Attributes:
        in_features, out_features: size of the original matrix.
        bias: whether it has one.
        input: name of the shared input, a key of Layout.inputs.
        code: code of its weight; None for a weight in 16 bits.
    """

    in_features: int
    out_features: int
    bias: bool
    input: str
    code: WeightCode | None

    def tensors(self) -> TensorForms:
        """The stored tensors of the weight, by the name that follows that of the Linear; none for one in 16 bits."""
        return {} if self.code is None else self.code.tensors(self.out_features, padded_size(self.in_features))


@dataclass(frozen=True)
class Layout:
    """Everything needed to build the quantized modules of a model.

    Attributes:
        weight_shape, act_shape, kv_shape: the code's fixed part; None where that part stays in 16 bits.
        seed: seed of the rotation signs.
        linears: each rotated Linear by its full module name.
        inputs: by name; the activation code of each distinct input, None when activations stay in 16 bits.
        cache: codes of keys and values by layer index, None for a layer without coded ones; empty when all stay in
            16 bits.
        rotation: one of ROTATIONS; a learned one follows the Hadamard rotation. Heads have no learned one.
        reflections: number of reflections of a learned rotation, by the name of its input.
        parts: number of equal parts that an input is rotated and coded in, each by itself, by its name; without an
            input that is whole.
        tables: the embedding and the head where they are quantized, by their full module names.
        factors: of the channels of an input, beside the signs of its rotation (`rotation.seeds`), by its name; without
            an input that has none.
        value_shape: the fixed part of the values' code where it is not that of keys; None where it is.
        act_shapes: the fixed part of the code of an input where it is not `act_shape`, by its name.
        unrounded: which keys and values are seen unrounded.
    """

    weight_shape: Shape | None
    act_shape: Shape | None
    kv_shape: Shape | None
    seed: int
    linears: dict[str, LinearLayout] = field(default_factory=dict)
    inputs: dict[str, VectorCode | None] = field(default_factory=dict)
    cache: list[CacheCodes | None] = field(default_factory=list)
    rotation: str = "hadamard"
    reflections: dict[str, int] = field(default_factory=dict)
    parts: dict[str, int] = field(default_factory=dict)
    tables: dict[str, TableLayout] = field(default_factory=dict)
    factors: dict[str, bytes] = field(default_factory=dict)
    value_shape: Shape | None = None
    unrounded: Unrounded = ALL_ROUNDED
    act_shapes: dict[str, Shape] = field(default_factory=dict)

    @property
    def rotation_seed(self) -> int | None:
        """Seed of the Hadamard rotation; None where nothing is rotated."""
        return None if self.rotation == "none" else self.seed

    def seed_of(self, name: str) -> Seed | None:
        """The seed with which the input `name` is rotated, and its weights with the `dual` of it."""
        return scaled(self.rotation_seed, self.factors.get(name))

    @property
    def matrices(self) -> dict[str, LinearLayout]:
        """All that is coded as a matrix is, by name: the Linears, and tables as Linears with an input of their own."""
        tables = self.tables.items()
        return self.linears | {name: LinearLayout(of.columns, of.rows, False, name, of.code) for name, of in tables}

    @property
    def codecs(self) -> set[str]:
        """Names of the codecs of weights, activations, keys and values."""
        shapes = self.weight_shape, self.act_shape, self.kv_shape, self.value_shape, *self.act_shapes.values()
        return {shape.codec for shape in shapes if shape is not None}

    @property
    def version(self) -> int:
        """The first format version that can say this."""
        coded = [layer for layer in self.cache if layer is not None]
        vectors = *self.inputs.values(), *(code for layer in coded for code in (layer.keys, layer.values))
        codes = [linear.code for linear in self.linears.values() if linear.code is not None]
        mixed = any(codec_of(code).shape_of(code) != self.weight_shape for code in codes)
        return max(
            2 if mixed or self.rotation != "hadamard" else 1,
            3 if any(code is not None and code.centered for code in vectors) else 1,
            5 if len(coded) < len(self.cache) else 1,
            6 if self.parts else 1,
            7 if self.tables else 1,
            7 if self.factors else 1,
            7 if self.value_shape is not None else 1,
            7 if self.unrounded else 1,
            7 if any(isinstance(layer.keys, FactoredCode) for layer in coded) else 1,
            7 if self.act_shapes else 1,
            *(CODECS[name].format_version for name in self.codecs),
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, as in docs/format.md; `modules.parse_layout` is the inverse."""
        version = self.version
        rotation = {"rotation": self.rotation, "reflections": self.reflections} if version > 1 else {}
        return {
            "format_version": version,
            "seed": self.seed,
            **rotation,
            **({"parts": self.parts} if self.parts else {}),
            **({"factors": {name: text_of(each) for name, each in self.factors.items()}} if self.factors else {}),
            "weight_code": _shape_to(self.weight_shape),
            "act_code": _shape_to(self.act_shape),
            "kv_code": _shape_to(self.kv_shape),
            **({"act_codes": acts} if (acts := _shapes_to(self.act_shapes)) else {}),
            **({} if self.value_shape is None else {"value_code": _shape_to(self.value_shape)}),
            **({"kv_unrounded": asdict(self.unrounded)} if self.unrounded else {}),
            "linears": {
                name: {
                    "in_features": linear.in_features,
                    "out_features": linear.out_features,
                    "bias": linear.bias,
                    "input": linear.input,
                    "multipliers": None,  # of nested codes, which say theirs; docs/format.md has the key for all
                    **self._code_to(linear.code),
                }
                for name, linear in self.linears.items()
            },
            "inputs": {name: None if code is None else code.fitted() for name, code in self.inputs.items()},
            "cache": [None if layer is None else layer.to_dict() for layer in self.cache],
            **({"tables": {name: table.to_dict() for name, table in self.tables.items()}} if self.tables else {}),
        }

    def _code_to(self, code: WeightCode | None) -> dict[str, Any]:
        return {} if code is None else codec_of(code).code_to_dict(code, self.weight_shape)


def _shape_to(shape: Shape | None) -> dict[str, Any] | None:
    return None if shape is None else shape.to_dict()


def _shapes_to(shapes: dict[str, Shape]) -> dict[str, Any]:
    return {name: shape.to_dict() for name, shape in shapes.items()}
