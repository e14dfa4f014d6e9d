"""Calibrations on disk: one safetensors file a layer, and `calibration.json` with the model, text and codes.

`calibration.store_writer` writes them.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..base.errors import NestQuantError
from ..codecs.factored import factored_from
from ..codecs.registry import vector_from
from ..codecs.vectors import VectorCode
from ..codecs.weights import Shape
from ..models.shards import Shard, read_shard, read_tensor
from ..modules.cache_codes import CacheCodes
from ..rotation.seeds import factors_of
from ..storage.files import read_json, sha256_file
from .hidden_states import DEFAULT_BUDGET
from .statistics import InputStatistics, LayerStatistics

FILE = "calibration.json"
FORMAT_VERSION = 1
_BEFORE = {
    "rotation": "hadamard",
    "reflections": 0,
    "centering": False,
    "bos": "none",
    "window_start": [],
    "tensor_parallel": 1,
    "channel_scales": False,
    "key_scales": False,
}  # values of settings that calibrations of older versions do not have
_NOT_USED = "the calibration was not used"
_AGAIN = "run nestquant calibrate again"


class Calibration:
    """A finished calibration.

    Args:
        folder: folder that `calibrate` wrote.

    Attributes:
        about: model, codes and text, as calibration.json has them.
        layers: record of each layer, with the hash of its file.

    Raises:
        NestQuantError: the folder is not one, is incomplete or damaged.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / FILE).is_file():
            raise NestQuantError(
                f"{folder} is not a finished calibration, it has no {FILE}", _NOT_USED, "run nestquant calibrate"
            )
        self.folder = folder
        self.about = read_json(folder / FILE)
        if not isinstance(self.about, dict) or self.about.get("format_version") != FORMAT_VERSION:
            raise NestQuantError(f"{folder / FILE} is of an unknown version", _NOT_USED, _AGAIN)
        self.about = _BEFORE | {"value_code": self.about.get("kv_code")} | self.about
        self.layers = self.about.pop("layers", None)
        if not isinstance(self.layers, list):
            raise NestQuantError(f"{folder / FILE} is damaged", _NOT_USED, _AGAIN)

    def check(self, wanted: dict[str, Any]) -> None:
        """Raises NestQuantError where an entry of `wanted` differs from the calibration's, and names it."""
        # what stays in 16 bits needs no code from the calibration
        not_needed: set[str] = {
            name for name in ("act_code", "kv_code", "value_code") if name in wanted and wanted[name] is None
        }
        if {"act_code", "kv_code"} <= not_needed:
            not_needed.add("centering")
        if "kv_code" in not_needed:
            not_needed.add("key_scales")
        for name, value in wanted.items():
            if self.about.get(name) != value and name not in not_needed:
                raise NestQuantError(
                    f"{self.folder} was calibrated with {name} {_short(self.about.get(name))}, not {_short(value)}",
                    _NOT_USED,
                    "calibrate again with the settings of this command",
                )

    def experts(self) -> dict[str, dict[str, Any]]:
        """Tokens that each expert saw and the pooled share of its H, by number of the layer and name of the Linear."""
        return {
            f"{index}.{leader}": {"tokens": entry["tokens"], "pooled": entry["pooled"]}
            for index, layer in enumerate(self.layers)
            for leader, entry in layer["inputs"].items()
            if "pooled" in entry
        }

    def layer(
        self,
        index: int,
        act_shape: Shape | None,
        kv_shape: Shape | None,
        budget: int = DEFAULT_BUDGET,
        value_shape: Shape | None = None,
    ) -> Iterator[LayerStatistics]:
        """Reads the statistics of layer `index` in parts.

        Args:
            index: number of the layer.
            act_shape, kv_shape: shapes of the codes of inputs and of keys and values; None reads none.
            budget: bytes of the Hessians of experts in a part; one is always taken. The first part has all inputs but
                those of experts, too.
            value_shape: shape of the code of values where it is not that of keys; None where it is.

        Raises:
            NestQuantError: the file is missing, truncated or altered.
        """
        path = self.folder / file_name(index)
        try:
            info = self.layers[index]
            if sha256_file(path) != info["sha256"]:
                raise NestQuantError(f"{path} was altered or truncated", _NOT_USED, _AGAIN)
            shard, entries, cache = read_shard(path), info["inputs"], None
            if kv_shape is not None and info["cache"] is not None:
                keys = _code_from(info["cache"]["keys"], kv_shape)
                values = _code_from(info["cache"]["values"], value_shape or kv_shape)
                assert keys is not None and values is not None
                cache = CacheCodes(factored_from(keys, info["cache"]["keys"].get("factors")), values)
            for leaders in _parts(shard, entries, budget):
                inputs = {leader: _item(leader, entries, shard, act_shape) for leader in leaders}
                yield LayerStatistics(inputs, cache)
                del inputs
        except (OSError, LookupError, TypeError, ValueError, AttributeError, AssertionError) as error:
            raise NestQuantError(f"{path} or {FILE} is damaged ({error!r})", _NOT_USED, _AGAIN) from error


def _parts(shard: Shard, entries: dict[str, Any], budget: int) -> list[list[str]]:
    """The inputs of a layer by their leaders, in parts whose Hessians of experts take at most `budget` bytes."""
    parts, left = [[leader for leader, entry in entries.items() if entry.get("source") is None]], budget
    for leader, entry in entries.items():
        if entry.get("source") is None:
            continue
        size = shard.entries[f"{leader}.hessian"].bytes
        if size > left and left < budget:
            parts.append([])
            left = budget
        parts[-1].append(leader)
        left -= size
    return parts


def remove_calibration(folder: Path) -> None:
    """Removes the files of a finished calibration, and its folder where nothing else is in it."""
    calibration = Calibration(folder)
    for name in (FILE, *map(file_name, range(len(calibration.layers)))):
        (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def to_device(layer: LayerStatistics, device: torch.device) -> LayerStatistics:
    """The statistics with their tensors on `device`."""
    inputs = {
        name: replace(item, hessian=item.hessian.to(device), noise=item.noise.to(device))
        for name, item in layer.inputs.items()
    }
    return LayerStatistics(inputs, layer.cache)


def _item(leader: str, entries: Any, shard: Shard, act_shape: Shape | None) -> InputStatistics:
    entry = entries[leader]
    source = entry.get("source")
    shared = source or leader
    return InputStatistics(
        tuple(entry["members"]),
        _tensor(shard, f"{leader}.hessian"),
        _tensor(shard, f"{leader}.noise") * (act_shape is not None),
        _code_from(entries[shared]["code"], act_shape),
        int(entry["dead"]),
        _tensor(shard, f"{shared}.reflectors") if f"{shared}.reflectors" in shard.entries else None,
        source=source,
        tokens=None if source is None else int(entry["tokens"]),
        pooled=0.0 if source is None else float(entry["pooled"]),
        parts=int(entry.get("parts", 1)),
        factors=None if "factors" not in entries[shared] else factors_of(entries[shared]["factors"]),
    )


def _tensor(shard: Shard, name: str) -> Tensor:
    return read_tensor(shard.path, shard.entries[name])


def file_name(index: int) -> str:
    """Name of the file of layer `index`."""
    return f"layer-{index:05d}.safetensors"


def _code_from(value: Any, shape: Shape | None) -> VectorCode | None:
    return None if shape is None else vector_from(value, shape)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:12] + "…"
