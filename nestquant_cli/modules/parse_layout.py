"""Reads the layout of a packed checkpoint from config.json, and checks every field: it may come from anyone."""

from collections.abc import Collection
from typing import Any

from ..base.errors import NestQuantError
from ..base.fields import Fields
from ..codecs.factored import factored_from
from ..codecs.registry import codec_of, shape_from, vector_from
from ..codecs.vectors import VectorCode
from ..codecs.weights import Shape
from ..rotation.seeds import factors_of
from .cache_codes import CacheCodes
from .inputs import padded_size
from .layout import FORMAT_VERSION, ROTATIONS, Layout, LinearLayout
from .table_layout import TableLayout, table_from
from .unrounded import ALL_ROUNDED, MOST_TOKENS, Unrounded

_LARGEST = 1 << 24  # entries in one dimension of a matrix; beyond it a config is taken for damaged or hostile


def parse_layout(value: Any) -> Layout:
    """Reads and checks what `Layout.to_dict` wrote.

    Raises:
        NestQuantError: a field is missing, of the wrong type or out of range, or the version is unknown.
    """
    try:
        return _layout_from(Fields(value, "quantization_config"))
    except ValueError as error:
        raise NestQuantError(
            f"config.json is not usable: {error}",
            "the checkpoint was not loaded",
            "fetch or quantize the checkpoint again",
        ) from error


def _layout_from(reader: Fields) -> Layout:
    version = reader.integer("format_version", 0, 1 << 31)
    if not 1 <= version <= FORMAT_VERSION:
        raise NestQuantError(
            f"the checkpoint has format version {version}, this nestquant reads 1 to {FORMAT_VERSION}",
            "it was not loaded",
            "install the nestquant that wrote it, or quantize again",
        )
    weight, act, kv = (reader.optional(key, shape_from) for key in ("weight_code", "act_code", "kv_code"))
    linears = {name: _linear_from(item, weight) for name, item in reader.mapping("linears").items()}
    shapes = _act_shapes_from(reader, act) if version > 6 else {}
    inputs = {
        name: None if act is None else vector_from(item, shapes.get(name, act), "inputs")
        for name, item in reader.mapping("inputs").items()
    }
    if set(shapes) - set(inputs):
        raise ValueError("act_codes names what is no input")
    parts = _parts_from(reader, inputs, linears) if version > 5 else {}
    widths: dict[str, int] = {}
    for name, linear in linears.items():
        if linear.input not in inputs:
            raise ValueError(f"linears.{name}.input names '{linear.input}', which inputs does not have")
        if widths.setdefault(linear.input, linear.in_features) != linear.in_features:
            raise ValueError(f"linears.{name} has another in_features than others with its input")
        _refuse_other_center(inputs[linear.input], linear, parts.get(linear.input, 1))
    value = reader.optional("value_code", shape_from) if version > 6 else None
    if value is not None and kv is None:
        raise ValueError("value_code is there without kv_code")
    cache = [] if kv is None else [_cache_from(item, kv, value or kv, version) for item in reader.sequence("cache")]
    rotation = _rotation_from(reader, inputs) if version > 1 else ("hadamard", {})
    if set(parts) & set(rotation[1]):
        raise ValueError("parts names an input with a learned rotation")
    tables = _tables_from(reader, linears) if version > 6 else {}
    factors = _factors_from(reader, widths) if version > 6 else {}
    if factors and rotation[0] == "none":
        raise ValueError("factors are beside the signs of a rotation, of which there is none")
    seed = reader.integer("seed", 0, (1 << 64) - 1)
    unrounded = _unrounded_from(reader) if version > 6 and cache else ALL_ROUNDED
    known: dict[str, Any] = {"parts": parts, "tables": tables, "factors": factors, "act_shapes": shapes}
    return Layout(
        weight, act, kv, seed, linears, inputs, cache, *rotation, value_shape=value, unrounded=unrounded, **known
    )


def _act_shapes_from(reader: Fields, act: Shape | None) -> dict[str, Shape]:
    named = reader.mapping("act_codes") if "act_codes" in reader.value else {}
    if named and act is None:
        raise ValueError("act_codes is there without act_code")
    return {name: shape_from(item, "act_codes") for name, item in named.items()}


def _tables_from(reader: Fields, linears: Collection[str]) -> dict[str, TableLayout]:
    named = reader.mapping("tables") if "tables" in reader.value else {}
    tables = {name: table_from(item) for name, item in named.items()}
    names = [*tables, *(table.head for table in tables.values() if table.head is not None)]
    if len(set(names)) < len(names) or set(names) & set(linears):
        raise ValueError("tables names a module twice, or one of linears")
    return tables


def _rotation_from(reader: Fields, inputs: dict[str, VectorCode | None]) -> tuple[str, dict[str, int]]:
    rotation, reflections = reader.value.get("rotation"), reader.mapping("reflections")
    if rotation not in ROTATIONS:
        raise ValueError(f"rotation must be one of {', '.join(ROTATIONS)}")
    counts = Fields(reflections, "reflections")
    learned = {name: counts.integer(name, 1, _LARGEST) for name in reflections}
    if set(learned) - set(inputs) or (learned and rotation != "learned"):
        raise ValueError("reflections names what is no input with a learned rotation")
    return rotation, learned


def _parts_from(reader: Fields, inputs: Collection[str], linears: dict[str, LinearLayout]) -> dict[str, int]:
    named = reader.mapping("parts") if "parts" in reader.value else {}
    counts = Fields(named, "parts")
    parts = {name: counts.integer(name, 2, _LARGEST) for name in named}
    rests = [linear.in_features % (8 * parts[linear.input]) for linear in linears.values() if linear.input in parts]
    if set(parts) - set(inputs) or any(rests):
        raise ValueError("parts names what is no input, or one that cannot be divided so")
    return parts


def _factors_from(reader: Fields, widths: dict[str, int]) -> dict[str, bytes]:
    named = reader.mapping("factors") if "factors" in reader.value else {}
    if not all(isinstance(text, str) for text in named.values()):
        raise ValueError("factors must be texts")
    factors = {name: factors_of(text) for name, text in named.items()}
    for name, each in factors.items():
        if name not in widths or len(each) != padded_size(widths[name]):
            raise ValueError(f"factors.{name} is not a factor for each channel of an input")
    return factors


def _unrounded_from(reader: Fields) -> Unrounded:
    if "kv_unrounded" not in reader.value:
        return ALL_ROUNDED
    tokens = Fields(reader.mapping("kv_unrounded"), "kv_unrounded")
    return Unrounded(*(tokens.integer(name, 0, MOST_TOKENS) for name in ("window", "sinks")))


def _linear_from(value: Any, shape: Shape | None) -> LinearLayout:
    reader = Fields(value, "linears")
    sizes = reader.integer("in_features", 1, _LARGEST), reader.integer("out_features", 1, _LARGEST)
    code = None if shape is None else codec_of(shape).code_from(reader, shape, padded_size(sizes[0]))
    bias, source = reader.value.get("bias"), reader.value.get("input")
    if type(bias) is not bool or type(source) is not str:
        raise ValueError("linears: bias must be true or false and input a name")
    return LinearLayout(*sizes, bias, source, code)


def _refuse_other_center(code: VectorCode | None, linear: LinearLayout, parts: int) -> None:
    if code is not None and not code.fits(parts, padded_size(linear.in_features) // parts):
        raise ValueError(f"inputs.{linear.input} has no center of its size")


def _cache_from(value: Any, of_keys: Shape, of_values: Shape, version: int) -> CacheCodes | None:
    if value is None:
        return None
    fields = Fields(value, "cache")
    shapes = {"keys": of_keys, "values": of_values}
    keys, values = (vector_from(fields.value.get(part), shapes[part], f"cache.{part}") for part in shapes)
    return CacheCodes(factored_from(keys, fields.value["keys"].get("factors")) if version > 6 else keys, values)
