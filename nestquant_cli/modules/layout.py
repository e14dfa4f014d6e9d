"""What a packed checkpoint says of itself: which matrices are coded how. Read from and written to config.json.

The JSON is that of `docs/format.md`; `Layout.from_dict` checks every field, because a config.json may come from anyone.
"""

from dataclasses import dataclass, field
from typing import Any

from ..base.errors import NestQuantError
from ..codecs.lattice.code import LatticeCode
from ..codecs.nested.centered import CenteredCode, centered_from
from ..codecs.nested.fit import ScaledCode
from ..codecs.protocol import Shape, WeightCode
from ..codecs.registry import shape_from, vector_from, weight_code
from ..codecs.vectors import VectorCode
from ..e8.shape import CodeShape
from .cache_codes import CacheCodes
from .fields import Fields, checked, unusable
from .inputs import padded_size

QUANT_METHOD = "nestquant"
# 1: nested codes of one shape, the Hadamard rotation. 2: other codecs, rotations, a shape for a matrix. 3: centers.
# 4: lattices. A checkpoint has the first version that suffices for it.
FORMAT_VERSION = 4
ROTATIONS = ("none", "hadamard", "learned")
_LARGEST = 1 << 24  # entries in one dimension of a matrix; beyond it a config is taken for damaged or hostile
_LARGEST_UNIT = 1 << 16  # of an entry in units of its row's root mean square; real ones are below 1


@dataclass(frozen=True)
class LinearLayout:
    """One quantized nn.Linear.

    Attributes:
        in_features, out_features: size of the original matrix.
        bias: whether it has one.
        input: name of the shared input, a key of Layout.inputs.
        multipliers: multipliers of the weight's nested code; None for any other code, or for a weight in 16 bits.
        shape: of its nested code, where it is not that of the layout; a lattice code with its groups.
    """

    in_features: int
    out_features: int
    bias: bool
    input: str
    multipliers: tuple[int, ...] | None
    shape: CodeShape | LatticeCode | None = None


@dataclass(frozen=True)
class Layout:
    """Everything needed to build the quantized modules of a model.

    Attributes:
        weight_shape, act_shape, kv_shape: the code's fixed part; None where that part stays in 16 bits.
        seed: seed of the rotation signs.
        linears: each rotated Linear by its full module name.
        inputs: by name; the activation code of each distinct input, None when activations stay in 16 bits.
        cache: codes of keys and values by layer index; empty when they stay in 16 bits.
        rotation: one of ROTATIONS; a learned one follows the Hadamard rotation. Heads have no learned one.
        reflections: number of reflections of a learned rotation, by the name of its input.
    """

    weight_shape: Shape | None
    act_shape: Shape | None
    kv_shape: Shape | None
    seed: int
    linears: dict[str, LinearLayout] = field(default_factory=dict)
    inputs: dict[str, VectorCode | None] = field(default_factory=dict)
    cache: list[CacheCodes] = field(default_factory=list)
    rotation: str = "hadamard"
    reflections: dict[str, int] = field(default_factory=dict)

    @property
    def rotation_seed(self) -> int | None:
        """Seed of the Hadamard rotation; None where nothing is rotated."""
        return None if self.rotation == "none" else self.seed

    @property
    def version(self) -> int:
        """The first format version that can say this."""
        vectors = *self.inputs.values(), *(code for layer in self.cache for code in (layer.keys, layer.values))
        if isinstance(self.weight_shape, LatticeCode):
            return 4
        if any(isinstance(code, CenteredCode) for code in vectors):
            return 3
        mixed = any(linear.shape is not None for linear in self.linears.values())
        return 2 if mixed or not self.plain or self.rotation != "hadamard" else 1

    @property
    def plain(self) -> bool:
        """Whether all codes are nested ones."""
        shapes = (self.weight_shape, self.act_shape, self.kv_shape)
        return all(shape is None or isinstance(shape, CodeShape) for shape in shapes)

    def code_of(self, linear: LinearLayout) -> WeightCode | None:
        """The code of a matrix; None where it stays in 16 bits."""
        shape = linear.shape or self.weight_shape
        return None if shape is None else weight_code(shape, linear.multipliers)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; the inverse of `from_dict`."""
        turned = {"rotation": self.rotation, "reflections": self.reflections} if self.version > 1 else {}
        return {
            "format_version": self.version,
            "seed": self.seed,
            **turned,
            "weight_code": _shape_to(self.weight_shape),
            "act_code": _shape_to(self.act_shape),
            "kv_code": _shape_to(self.kv_shape),
            "linears": {
                name: {
                    "in_features": linear.in_features,
                    "out_features": linear.out_features,
                    "bias": linear.bias,
                    "input": linear.input,
                    "multipliers": None if linear.multipliers is None else list(linear.multipliers),
                    **_own_to(linear.shape),
                }
                for name, linear in self.linears.items()
            },
            "inputs": {name: None if code is None else code.fitted() for name, code in self.inputs.items()},
            "cache": [{"keys": layer.keys.fitted(), "values": layer.values.fitted()} for layer in self.cache],
        }

    @staticmethod
    def from_dict(value: Any) -> "Layout":
        """Reads and checks what `to_dict` wrote.

        Raises:
            NestQuantError: a field is missing, of the wrong type or out of range, or the version is unknown.
        """
        reader = Fields(value, "quantization_config")
        version = reader.integer("format_version", 0, 1 << 31)
        if not 1 <= version <= FORMAT_VERSION:
            raise NestQuantError(
                f"the checkpoint has format version {version}, this nestquant reads 1 to {FORMAT_VERSION}",
                "it was not loaded",
                "install the nestquant that wrote it, or quantize again",
            )
        weight, act, kv = (reader.optional(key, _shape_from) for key in ("weight_code", "act_code", "kv_code"))
        linears = {name: _linear_from(item, weight) for name, item in reader.mapping("linears").items()}
        inputs = {name: _input_from(item, act) for name, item in reader.mapping("inputs").items()}
        widths: dict[str, int] = {}
        for name, linear in linears.items():
            if linear.input not in inputs:
                raise unusable(f"linears.{name}.input names '{linear.input}', which inputs does not have")
            if widths.setdefault(linear.input, linear.in_features) != linear.in_features:
                raise unusable(f"linears.{name} has another in_features than others with its input")
            _refuse_other_center(inputs[linear.input], linear)
        cache = [] if kv is None else [_cache_from(item, kv) for item in reader.sequence("cache")]
        turned = _rotation_from(reader, inputs) if version > 1 else ("hadamard", {})
        return Layout(weight, act, kv, reader.integer("seed", 0, (1 << 64) - 1), linears, inputs, cache, *turned)


def _shape_to(shape: Shape | None) -> dict[str, Any] | None:
    return None if shape is None else shape.to_dict()


def _own_to(shape: CodeShape | LatticeCode | None) -> dict[str, Any]:
    if isinstance(shape, LatticeCode):
        return {"groups": shape.fitted()}
    return {} if shape is None else {"code": shape.to_dict()}


def _rotation_from(reader: "Fields", inputs: dict[str, VectorCode | None]) -> tuple[str, dict[str, int]]:
    rotation, reflections = reader.value.get("rotation"), reader.mapping("reflections")
    if rotation not in ROTATIONS:
        raise unusable(f"rotation must be one of {', '.join(ROTATIONS)}")
    counts = Fields(reflections, "reflections")
    learned = {name: counts.integer(name, 1, _LARGEST) for name in reflections}
    if set(learned) - set(inputs) or (learned and rotation != "learned"):
        raise unusable("reflections names what is no input with a learned rotation")
    return rotation, learned


def _shape_from(value: Any) -> Shape:
    reader = Fields(value, "code")
    if "codec" in reader.value:
        return checked(lambda: shape_from(reader.value))
    numbers = (reader.integer("q", 2, 256), reader.integer("k", 1, 255), reader.integer("word_bits", 8, 64))
    return checked(lambda: CodeShape(*numbers, reader.integer("limit", 1, 32767)))


def _multipliers_from(reader: "Fields", shape: CodeShape) -> tuple[int, ...]:
    items = reader.sequence("multipliers")
    if not 1 <= len(items) <= shape.k or any(type(m) is not int or not 1 <= m <= 32767 for m in items):
        raise unusable(f"{reader.place}.multipliers must be 1 to {shape.k} positive integers")
    checked(lambda: shape.with_multipliers(tuple(items)))
    return tuple(items)


def _code_from(value: Any, shape: Shape, place: str) -> VectorCode:
    reader = Fields(value, place)
    if not isinstance(shape, CodeShape):
        return checked(lambda: vector_from(reader.value, shape))
    unit: Any = reader.value.get("unit")
    if type(unit) not in (float, int) or not 0 < unit <= _LARGEST_UNIT:  # comparing never overflows, and NaN fails it
        raise unusable(f"{place}.unit must be a number above 0 and at most {_LARGEST_UNIT}")
    scaled = ScaledCode(shape.with_multipliers(_multipliers_from(reader, shape)), float(unit))
    if "centers" not in reader.value:
        return scaled
    return checked(lambda: centered_from(scaled, reader.value["centers"]))


def _linear_from(value: Any, shape: Shape | None) -> LinearLayout:
    reader = Fields(value, "linears")
    nested: Shape | None = reader.optional("code", _shape_from) if isinstance(shape, CodeShape) else None
    if nested is not None and not isinstance(nested, CodeShape):
        raise unusable("linears: code is none of the nested ones")
    multipliers = _multipliers_from(reader, nested or shape) if isinstance(shape, CodeShape) else None
    sizes = reader.integer("in_features", 1, _LARGEST), reader.integer("out_features", 1, _LARGEST)
    own: CodeShape | LatticeCode | None = nested
    if isinstance(shape, LatticeCode):
        own = checked(lambda: shape.with_groups(reader.value.get("groups"), padded_size(sizes[0])))
    bias, source = reader.value.get("bias"), reader.value.get("input")
    if type(bias) is not bool or type(source) is not str:
        raise unusable("linears: bias must be true or false and input a name")
    return LinearLayout(*sizes, bias, source, multipliers, own)


def _input_from(value: Any, shape: Shape | None) -> VectorCode | None:
    return None if shape is None else _code_from(value, shape, "inputs")


def _refuse_other_center(code: VectorCode | None, linear: LinearLayout) -> None:
    if isinstance(code, CenteredCode):
        size = code.vector_bytes(padded_size(linear.in_features))
        if [len(center) for center in code.packed] != [size]:
            raise unusable(f"inputs.{linear.input} has no center of its size")


def _cache_from(value: Any, shape: Shape) -> CacheCodes:
    reader = Fields(value, "cache")
    return CacheCodes(
        _code_from(reader.value.get("keys"), shape, "cache.keys"),
        _code_from(reader.value.get("values"), shape, "cache.values"),
    )
