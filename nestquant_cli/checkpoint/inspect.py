"""What a packed checkpoint spends its bytes on, from its headers, config.json and file sizes; no tensor is read."""

import json
import math
from collections.abc import Collection
from pathlib import Path

from ..base.errors import NestQuantError
from ..codecs.registry import codec_of
from ..models.shards import Entry, Shard, read_shard
from ..modules.inputs import padded_size
from ..modules.layout import REFLECTORS, Layout
from ..storage.files import read_json
from .byte_counts import KEPT, OTHER, QUANTIZED, TABLES, Inspection, Matrix, Part
from .manifest import CONFIG, INDEX, MANIFEST, REPORT
from .read import open_checkpoint, read_layout, read_quantization_config
from .staying import stacks_of, stored_staying
from .towers import has_parts, tower_tensors

TOWERS = "towers and projectors"


def inspect(folder: Path | str) -> Inspection:
    """Counts the bytes of a packed checkpoint. Hashes are not checked; see `verify`.

    Raises:
        NestQuantError: not a packed checkpoint, incomplete, a shard that is missing or truncated, or tensors that do
            not fit config.json.

    Example:
        >>> found = inspect("demo-w4")
        >>> print(found.bits_per_weight, found.file_bytes)
    """
    folder = Path(folder)
    manifest = open_checkpoint(folder)
    section, layout = read_quantization_config(folder), read_layout(folder)
    shards = [read_shard(folder / name) for name in manifest["files"] if name.endswith(".safetensors")]
    matrices = _matrices(folder, layout, {name: e for shard in shards for name, e in shard.entries.items()})
    towers = _towers(folder, layout, shards)
    parts, stays = _tensor_parts(layout, shards, towers), stored_staying(folder, layout, shards)
    sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
    parts += _file_parts(sizes, {shard.path.name for shard in shards}, _layout_bytes(folder) if layout.linears else 0)
    recipe, bits = section.get("recipe"), section.get("bits")
    return Inspection(
        folder,
        _merged(parts),
        matrices,
        recipe if isinstance(recipe, dict) else {},
        bits if isinstance(bits, dict) else {},
        _entropy_bits(folder, layout),
        stays,
        _parameters(layout, matrices, shards),
    )


def _parameters(layout: Layout, matrices: list[Matrix], shards: list[Shard]) -> int:
    """Entries of the original's tensors: of the coded matrices and tables, and of what is stored as it was."""
    packed = _packed_kinds(layout).keys() | _table_kinds(layout).keys()
    kept = [entry for shard in shards for name, entry in shard.entries.items() if name not in packed]
    coded = [matrix.weights for matrix in matrices] + [table.rows * table.columns for table in layout.tables.values()]
    return sum(coded) + sum(math.prod(entry.shape) for entry in kept)


def _matrices(folder: Path, layout: Layout, entries: dict[str, Entry]) -> list[Matrix]:
    matrices = []
    for name, linear in layout.linears.items():
        code = linear.code
        if code is None:
            continue
        spent = {}
        for leaf, (shape, kind) in linear.tensors().items():
            tensor, dtype = f"{name}.{leaf}", str(kind).removeprefix("torch.")
            if tensor not in entries or (entries[tensor].dtype, entries[tensor].shape) != (dtype, shape):
                raise NestQuantError(
                    f"{folder} has no tensor {tensor} of {dtype} {shape}, which its config.json calls for",
                    "its bits were not counted",
                    "fetch or quantize the checkpoint again",
                )
            spent[leaf] = entries[tensor].bytes
        codec = codec_of(code)
        matrices.append(
            Matrix(
                name,
                (linear.out_features, linear.in_features),
                codec.summary(code),
                codec.describe(code),
                codec.shape_of(code).word_bits,
                spent.pop("words"),
                sum(spent.values()),
            )
        )
    return matrices


def _tensor_parts(layout: Layout, shards: list[Shard], towers: Collection[str]) -> list[Part]:
    """Parts of the shards. The frame of a header belongs to the quantized layers when any of their tensors is in it."""
    parts, packed, tables = [], _packed_kinds(layout), _table_kinds(layout)
    stacks = stacks_of(layout)
    for shard in shards:
        frame = KEPT
        for name, entry in shard.entries.items():
            if name in packed:
                group, kind = QUANTIZED, packed[name]
                frame = QUANTIZED
            elif name in tables:
                group, kind = TABLES, tables[name]
            else:
                group, kind = KEPT, TOWERS if name in towers else _kind(name, entry, layout, stacks)
            parts += [Part(group, kind, entry.bytes), Part(group, "safetensors headers", entry.header_bytes)]
        parts.append(Part(frame, "safetensors headers", shard.frame_bytes))
    return parts


def _packed_kinds(layout: Layout) -> dict[str, str]:
    """What people call each tensor of the quantized layers, by its full name."""
    kinds = {f"{name}.{REFLECTORS}": "learned rotations" for name in layout.reflections}
    for name, linear in layout.linears.items():
        if linear.code is not None:
            kinds |= {f"{name}.{leaf}": kind for leaf, kind in codec_of(linear.code).tensor_kinds.items()}
    return kinds


def _table_kinds(layout: Layout) -> dict[str, str]:
    """What people call each tensor of the quantized embedding and head, by its full name."""
    kinds = {name: codec_of(table.code).tensor_kinds for name, table in layout.tables.items()}
    return {f"{name}.{leaf}": kind for name in kinds for leaf, kind in kinds[name].items()}


def _kind(name: str, entry: Entry, layout: Layout, stacks: tuple[str, ...]) -> str:
    """By structure: a matrix of a decoder layer is one that stays, one further out than what owns the layers the output
    head, any other an embedding."""
    module, _, leaf = name.rpartition(".")
    if leaf == "bias":
        return "biases"
    if module in layout.linears:
        return "weights"
    if len(entry.shape) < 2:
        return "norms"
    if name.startswith(stacks):
        return "other matrices of the layers"
    place = "".join(f"{word}." for word in module.split(".")[:-1])
    above = any(stack.startswith(place) and stack.count(".") > place.count(".") + 1 for stack in stacks)
    return "output head" if above or not place else "embeddings"


def _towers(folder: Path, layout: Layout, shards: list[Shard]) -> set[str]:
    """Names of the tensors of towers; none of a model of text alone."""
    names = [name for shard in shards for name in shard.entries]
    found = has_parts(read_json(folder / CONFIG)) and layout.linears
    return tower_tensors(names, stacks_of(layout)[0].rstrip(".")) if found else set()


def _file_parts(sizes: dict[str, int], shards: set[str], layout_bytes: int) -> list[Part]:
    config = sizes["config.json"]
    layout_bytes = min(layout_bytes, config)
    names = {INDEX: "index", MANIFEST: "manifest", REPORT: "report", "config.json": ""}
    parts = [
        Part(QUANTIZED, "code parameters in config.json", layout_bytes),
        Part(OTHER, "rest of config.json", config - layout_bytes),
    ]
    for name, size in sorted(sizes.items()):
        if name not in shards and name != "config.json":
            parts.append(Part(OTHER, names.get(name, "tokenizer and others"), size))
    return parts


def _layout_bytes(folder: Path) -> int:
    """Bytes of config.json, as quantize and transformers indent it, that are the layout."""
    config = read_json(folder / "config.json")
    whole = len(json.dumps(config, indent=2))
    config["quantization_config"].pop("layout")
    return whole - len(json.dumps(config, indent=2))


def _merged(parts: list[Part]) -> list[Part]:
    """One part for each group and name, groups together, empty ones left out."""
    total: dict[tuple[str, str], int] = {}
    for part in sorted(parts, key=lambda part: (QUANTIZED, TABLES, KEPT, OTHER).index(part.group)):
        total[part.group, part.name] = total.get((part.group, part.name), 0) + part.bytes
    return [Part(group, name, count) for (group, name), count in total.items() if count]


def _entropy_bits(folder: Path, layout: Layout) -> float | None:
    """Bits per weight, padding included, with entropy-coded indices; None where a matrix has no such indices."""
    try:
        records = read_json(folder / REPORT)["matrices"]
        bits = entries = 0.0
        for name, linear in layout.linears.items():
            if linear.code is None:
                continue
            of_matrix = codec_of(linear.code).entropy_bits(linear.code, records[name])
            if of_matrix is None:
                return None
            bits += of_matrix
            entries += linear.out_features * padded_size(linear.in_features)
        return bits / entries if entries else None
    except (NestQuantError, KeyError, TypeError, ValueError, OverflowError):
        return None  # the report is information only; verify says what is wrong with it
