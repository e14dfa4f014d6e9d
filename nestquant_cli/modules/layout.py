"""What a packed checkpoint says of itself: which matrices are coded how. Read from and written to config.json.

The JSON is that of `docs/format.md`; `Layout.from_dict` checks every field, because a config.json may come from anyone.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ..codecs.fit import ScaledCode
from ..codecs.heads import CacheCodes
from ..errors import NestQuantError
from ..lattice.code import NestedCode
from ..lattice.shape import CodeShape

QUANT_METHOD = "nestquant"
FORMAT_VERSION = 2  # version 1 has one code shape for all weights; what that suffices for is written as 1
_LARGEST = 1 << 24  # entries in one dimension of a matrix; beyond it a config is taken for damaged or hostile
_LARGEST_UNIT = 1 << 16  # of an entry in units of its row's root mean square; real ones are below 1

T = TypeVar("T")


@dataclass(frozen=True)
class LinearLayout:
    """One quantized nn.Linear.

    Attributes:
        in_features, out_features: of the original matrix.
        bias: whether it has one.
        input: name of the shared input, a key of Layout.inputs.
        multipliers: of the weight's code; None where weights stay in 16 bits.
        shape: of its code, where it is not that of the layout.
    """

    in_features: int
    out_features: int
    bias: bool
    input: str
    multipliers: tuple[int, ...] | None
    shape: CodeShape | None = None


@dataclass(frozen=True)
class Layout:
    """Everything needed to build the quantized modules of a model.

    Attributes:
        weight_shape, act_shape, kv_shape: the code's fixed part; None where that part stays in 16 bits.
        seed: of the rotation signs.
        linears: by full module name.
        inputs: by name; the activation code of each distinct input, None when activations stay in 16 bits.
        cache: by layer index; empty when keys and values stay in 16 bits.
    """

    weight_shape: CodeShape | None
    act_shape: CodeShape | None
    kv_shape: CodeShape | None
    seed: int
    linears: dict[str, LinearLayout] = field(default_factory=dict)
    inputs: dict[str, ScaledCode | None] = field(default_factory=dict)
    cache: list[CacheCodes] = field(default_factory=list)

    def code_of(self, linear: LinearLayout) -> NestedCode | None:
        """The code of a matrix; None where it stays in 16 bits."""
        shape = linear.shape or self.weight_shape
        return None if shape is None or linear.multipliers is None else shape.with_multipliers(linear.multipliers)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; the inverse of `from_dict`."""
        mixed = any(linear.shape is not None for linear in self.linears.values())
        return {
            "format_version": FORMAT_VERSION if mixed else 1,
            "seed": self.seed,
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
                    **({} if linear.shape is None else {"code": _shape_to(linear.shape)}),
                }
                for name, linear in self.linears.items()
            },
            "inputs": {name: None if code is None else _code_to(code) for name, code in self.inputs.items()},
            "cache": [{"keys": _code_to(layer.keys), "values": _code_to(layer.values)} for layer in self.cache],
        }

    @staticmethod
    def from_dict(value: Any) -> "Layout":
        """Reads and checks what `to_dict` wrote.

        Raises:
            NestQuantError: a field is missing, of the wrong type or out of range, or the version is unknown.
        """
        reader = _Reader(value, "quantization_config")
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
                raise _refuse(f"linears.{name}.input names '{linear.input}', which inputs does not have")
            if widths.setdefault(linear.input, linear.in_features) != linear.in_features:
                raise _refuse(f"linears.{name} has another in_features than others with its input")
        cache = [] if kv is None else [_cache_from(item, kv) for item in reader.sequence("cache")]
        return Layout(weight, act, kv, reader.integer("seed", 0, (1 << 64) - 1), linears, inputs, cache)


def _shape_to(shape: CodeShape | None) -> dict[str, int] | None:
    if shape is None:
        return None
    return {"q": shape.q, "k": shape.k, "word_bits": shape.word_bits, "limit": shape.limit}


def _code_to(scaled: ScaledCode) -> dict[str, Any]:
    return {"unit": scaled.unit, "multipliers": list(scaled.code.multipliers)}


def _shape_from(value: Any) -> CodeShape:
    reader = _Reader(value, "code")
    numbers = (reader.integer("q", 2, 256), reader.integer("k", 1, 255), reader.integer("word_bits", 8, 64))
    return _checked(lambda: CodeShape(*numbers, reader.integer("limit", 1, 32767)))


def _multipliers_from(reader: "_Reader", shape: CodeShape) -> tuple[int, ...]:
    items = reader.sequence("multipliers")
    if not 1 <= len(items) <= shape.k or any(type(m) is not int or not 1 <= m <= 32767 for m in items):
        raise _refuse(f"{reader.place}.multipliers must be 1 to {shape.k} positive integers")
    _checked(lambda: shape.with_multipliers(tuple(items)))
    return tuple(items)


def _code_from(value: Any, shape: CodeShape, place: str) -> ScaledCode:
    reader = _Reader(value, place)
    unit: Any = reader.value.get("unit")
    if type(unit) not in (float, int) or not 0 < unit <= _LARGEST_UNIT:  # comparing never overflows, and NaN fails it
        raise _refuse(f"{place}.unit must be a number above 0 and at most {_LARGEST_UNIT}")
    return ScaledCode(shape.with_multipliers(_multipliers_from(reader, shape)), float(unit))


def _linear_from(value: Any, shape: CodeShape | None) -> LinearLayout:
    reader = _Reader(value, "linears")
    own = None if shape is None else reader.optional("code", _shape_from)
    multipliers = None if shape is None else _multipliers_from(reader, own or shape)
    sizes = reader.integer("in_features", 1, _LARGEST), reader.integer("out_features", 1, _LARGEST)
    bias, source = reader.value.get("bias"), reader.value.get("input")
    if type(bias) is not bool or type(source) is not str:
        raise _refuse("linears: bias must be true or false and input a name")
    return LinearLayout(*sizes, bias, source, multipliers, own)


def _input_from(value: Any, shape: CodeShape | None) -> ScaledCode | None:
    return None if shape is None else _code_from(value, shape, "inputs")


def _cache_from(value: Any, shape: CodeShape) -> CacheCodes:
    reader = _Reader(value, "cache")
    return CacheCodes(
        _code_from(reader.value.get("keys"), shape, "cache.keys"),
        _code_from(reader.value.get("values"), shape, "cache.values"),
    )


class _Reader:
    """Typed access to one JSON object; `place` names it in errors."""

    def __init__(self, value: Any, place: str) -> None:
        if not isinstance(value, dict):
            raise _refuse(f"{place} is not an object")
        self.value, self.place = value, place

    def integer(self, key: str, low: int, high: int) -> int:
        item = self.value.get(key)
        if type(item) is not int or not low <= item <= high:
            raise _refuse(f"{self.place}.{key} must be an integer from {low} to {high}")
        return item

    def mapping(self, key: str) -> dict[str, Any]:
        item = self.value.get(key)
        if not isinstance(item, dict):
            raise _refuse(f"{self.place}.{key} is not an object")
        return item

    def sequence(self, key: str) -> list[Any]:
        item = self.value.get(key)
        if not isinstance(item, list):
            raise _refuse(f"{self.place}.{key} is not a list")
        return item

    def optional(self, key: str, read: Callable[[Any], T]) -> T | None:
        return None if self.value.get(key) is None else read(self.value[key])


def _checked(make: Callable[[], T]) -> T:
    try:
        return make()
    except ValueError as error:
        raise _refuse(str(error)) from error


def _refuse(cause: str) -> NestQuantError:
    return NestQuantError(
        f"config.json is not usable: {cause}", "the checkpoint was not loaded", "fetch or quantize the checkpoint again"
    )
