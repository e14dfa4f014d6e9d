"""A packed checkpoint as one that tools without lattices read: what `nestquant export` runs."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from ..base.progress import track
from ..base.version import __version__
from ..checkpoint.manifest import CONFIG, INDEX, MANIFEST, REPORT
from ..checkpoint.output import Output
from ..checkpoint.read import check_checkpoint, open_checkpoint, read_layout
from ..codecs.protocol import Grid
from ..models.auto_class import auto_names
from ..models.fingerprint import UNRELATED_KEYS
from ..models.shards import Entry, read_shard, read_tensor
from ..models.size_limits import describing, meta_model
from ..models.source import fingerprint, resolve
from ..modules.layout import Layout
from ..storage.files import read_json, write_text
from ..storage.output_checks import refuse_full_disk
from ..storage.resume import refuse_foreign
from .loading import CLASS, MODULE, NOTE, code, note
from .scheme import cannot, grid_of, matrix_tensors, transform_name, transform_weight, transforms, weight_arguments
from .tables import table_bytes, table_weight

FORMAT = "compressed-tensors"
_OURS = {CONFIG, INDEX, MANIFEST, REPORT, NOTE}  # files that the export has of its own
_NOT_COPIED = (".safetensors", ".py")  # weights, and code, which is for the format that the folder came in
_Places = dict[str, tuple[Path, Entry]]  # file and place of every tensor


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        matrices: how many.
        bits: bits of their integers.
        transforms: names of the transforms in front of them.
        left_out: what of the checkpoint the export does not have, for people.
    """

    matrices: int
    bits: int
    transforms: tuple[str, ...]
    left_out: tuple[str, ...]


def export(folder: Path, output: Path) -> Exported:
    """Writes a packed checkpoint in the compressed-tensors format; run again, it goes on where it was interrupted.

    Raises:
        NestQuantError: no sound packed checkpoint, one that the format cannot hold, or an output folder with other
            files.
    """
    refuse_foreign(output, CONFIG)
    open_checkpoint(folder)
    layout = read_layout(folder)
    grid = grid_of(layout)
    check_checkpoint(folder)
    config = read_json(folder / CONFIG)
    model = _model(folder)
    linears, autos = _linears(model, layout), auto_names(model.config)
    others = [name for name in linears if name not in layout.linears]
    groups = transforms(layout, others)
    places, dtype = _places(folder), model.dtype
    _refuse_full_disk(output, layout, grid, places)
    parts = list(_parts(layout, places))
    key = {"format": FORMAT, "model_sha256": fingerprint(resolve(str(folder)))}
    with Output(output, key, len(parts), resume=True, start_over="remove the folder") as target:
        if target.finished() is None:
            for number in track(range(len(parts)), "writing shards"):
                if target.done(number) is None:
                    target.write(number, _tensors(parts[number], layout, grid, places, dtype), {})
            about = note(grid.bits, groups, autos[0])
            target.add_files(lambda place: _add_files(place, folder, type(model).__name__, about, groups))
            exported = _config(config, grid, groups, others, autos)
            target.finish(exported, {"format": FORMAT, "nestquant": __version__, **key})
    return Exported(len(layout.linears), grid.bits, tuple(sorted(groups)), _left_out(layout))


def _model(folder: Path) -> PreTrainedModel:
    with describing():
        model = meta_model(AutoConfig.from_pretrained(folder, trust_remote_code=False))
    if getattr(transformers, type(model).__name__, None) is not type(model):
        raise cannot(f"transformers has no {type(model).__name__} by that name", "use a model of transformers")
    return model


def _linears(model: PreTrainedModel, layout: Layout) -> list[str]:
    """Names of a model's Linears, which are all that the format knows: matrices of experts and Conv1D are none."""
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if strange := sorted(layout.linears.keys() - set(linears)):
        what = f"{strange[0]} is no nn.Linear of {type(model).__name__}"
        raise cannot(what, "use the packed checkpoint itself, with from_pretrained")
    return linears


def _places(folder: Path) -> _Places:
    shards = sorted(folder.glob("*.safetensors"))
    return {name: (path, entry) for path in shards for name, entry in read_shard(path).entries.items()}


def _parts(layout: Layout, places: _Places) -> Iterator[list[str]]:
    """Names of matrices, of other tensors and, last, of transforms: a list for each shard."""
    owners = {f"{name}.{leaf}": name for name, linear in layout.matrices.items() for leaf in linear.tensors()}
    shards: dict[Path, dict[str, None]] = {}
    for name, (path, _) in places.items():
        shards.setdefault(path, {})[owners.get(name, name)] = None
    seen: set[str] = set()
    for names in shards.values():
        yield [name for name in names if name not in seen]
        seen.update(names)
    if layout.rotation != "none":
        # one for each width: the first module of that width has it, the others share it
        first: dict[int, str] = {}
        for name, linear in layout.linears.items():
            first.setdefault(linear.in_features, name)
        yield [f"{name}.{transform_name(width)}_input.weight" for width, name in first.items()]


def _tensors(names: list[str], layout: Layout, grid: Grid, places: _Places, dtype: torch.dtype) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name in names:
        if name in layout.matrices:
            linear = layout.matrices[name]
            stored = {leaf: read_tensor(*places[f"{name}.{leaf}"]) for leaf in linear.tensors()}
            if name in layout.tables:
                tensors[f"{name}.weight"] = table_weight(name, layout, stored, dtype)
            else:
                tensors |= matrix_tensors(name, linear, grid, stored)
        elif name in places:
            tensors[name] = read_tensor(*places[name])
        else:
            owner = name.rsplit(".", 2)[0]
            tensors[name] = transform_weight(layout.linears[owner].in_features, layout.seed)
    return tensors


def _refuse_full_disk(output: Path, layout: Layout, grid: Grid, places: _Places) -> None:
    packed = sum(linear.in_features * linear.out_features for linear in layout.linears.values()) * grid.bits // 8
    widths = {linear.in_features for linear in layout.linears.values()} if layout.rotation != "none" else set()
    needed = (
        packed
        + table_bytes(layout, torch.float32)
        + sum(entry.bytes for _, entry in places.values())
        + sum(4 * width**2 for width in widths)
    )
    refuse_full_disk(output, needed, "the export")


def _add_files(place: Path, folder: Path, base: str, about: str, groups: dict[str, Any]) -> None:
    for name in open_checkpoint(folder)["files"]:
        if not name.endswith(_NOT_COPIED) and name not in _OURS:
            shutil.copyfile(folder / name, place / name)
    write_text(place / NOTE, about)
    if groups:
        write_text(place / f"{MODULE}.py", code(base, groups))


def _config(
    config: dict[str, Any], grid: Grid, groups: dict[str, Any], others: list[str], autos: list[str]
) -> dict[str, Any]:
    """config.json of the export; `autos` are names of the Auto classes that are to find its code."""
    own = {key: value for key, value in config.items() if key not in ("auto_map", *UNRELATED_KEYS)}
    section: dict[str, Any] = {
        "quant_method": FORMAT,
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {"targets": ["Linear"], "weights": weight_arguments(grid), "format": "pack-quantized"}
        },
        "ignore": others,
        "kv_cache_scheme": None,
    }
    if groups:
        section["transform_config"] = {"config_groups": groups}
        own["auto_map"] = dict.fromkeys(autos, f"{MODULE}.{CLASS}")
    return own | {"quantization_config": section}


def _left_out(layout: Layout) -> tuple[str, ...]:
    left = []
    if layout.act_shape is not None:
        left.append("activations")
    if layout.cache:
        left.append("keys and values")
    left += layout.tables
    return tuple(left)
