"""Calibrations on disk: one safetensors file a layer, and last `calibration.json` with the model, text and codes."""

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..base.errors import NestQuantError
from ..codecs.registry import vector_from
from ..codecs.vectors import VectorCode
from ..codecs.weights import Shape
from ..models.shard_writer import write_shard
from ..models.shards import read_tensors
from ..modules.cache_codes import CacheCodes
from ..storage.files import read_json, sha256_file, write_json
from ..storage.resume import RunState
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
}  # values of settings that calibrations of older versions do not have
_NOT_USED = "the calibration was not used"
_AGAIN = "run nestquant calibrate again"


class CalibrationWriter:
    """Writes the layers of a calibration in any order. Layers that an earlier run wrote are kept.

    The folder is locked; `with` unlocks it where it ends before the folder is complete.

    Args:
        folder: output folder, which must not exist, be empty, or hold an unfinished calibration with the same key.
        about: model, codes and text, JSON-ready; compared again when the calibration is used.
        key: what else the bytes of the result depend on, JSON-ready.

    Raises:
        NestQuantError: the folder holds something else, or a calibration of something else.
    """

    def __init__(self, folder: Path, about: dict[str, Any], key: dict[str, Any] | None = None) -> None:
        self.folder, self.about = folder, about
        self.state = RunState(folder, {**about, **(key or {})}, FILE, start_over="remove the folder")

    def __enter__(self) -> "CalibrationWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.state.release()

    def done(self, index: int) -> bool:
        """Whether layer `index` is written."""
        return self.state.done(index, _file_name(index)) is not None

    def write(self, index: int, layer: LayerStatistics) -> None:
        """Writes layer `index`, then records it as finished."""
        name = _file_name(index)
        tensors = {}
        for leader, item in layer.inputs.items():
            tensors[f"{leader}.hessian"] = item.hessian
            tensors[f"{leader}.noise"] = item.noise
            if item.reflectors is not None and item.source in (None, leader):
                tensors[f"{leader}.reflectors"] = item.reflectors
        with self.state.writing(name) as temporary:
            write_shard(temporary, tensors)
        inputs = {leader: _entry(leader, item) for leader, item in layer.inputs.items()}
        cache = layer.cache and layer.cache.to_dict()
        self.state.record(index, name, {"inputs": inputs, "cache": cache})

    def finish(self, depth: int) -> None:
        """Writes calibration.json of `depth` layers, after which the folder is complete."""
        if not self.state.complete:
            layers = []
            for index in range(depth):
                record = self.state.recorded(index)
                assert record is not None
                layers.append({"sha256": record.key["sha256"], **record.value})
            self.state.claim(FILE)
            write_json(self.folder / FILE, {"format_version": FORMAT_VERSION, **self.about, "layers": layers})
        self.state.close()


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
        self.about = _BEFORE | self.about
        self.layers = self.about.pop("layers", None)
        if not isinstance(self.layers, list):
            raise NestQuantError(f"{folder / FILE} is damaged", _NOT_USED, _AGAIN)

    def check(self, wanted: dict[str, Any]) -> None:
        """Raises NestQuantError where an entry of `wanted` differs from the calibration's, and names it."""
        # what stays in 16 bits needs no code from the calibration
        not_needed: set[str] = {name for name in ("act_code", "kv_code") if name in wanted and wanted[name] is None}
        if {"act_code", "kv_code"} <= not_needed:
            not_needed.add("centering")
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

    def layer(self, index: int, act_shape: Shape | None, kv_shape: Shape | None) -> LayerStatistics:
        """Reads the statistics of layer `index`.

        Args:
            index: number of the layer.
            act_shape, kv_shape: shapes of the codes of inputs and of keys and values; None reads none.

        Raises:
            NestQuantError: the file is missing, truncated or altered.
        """
        path = self.folder / _file_name(index)
        try:
            info = self.layers[index]
            if sha256_file(path) != info["sha256"]:
                raise NestQuantError(f"{path} was altered or truncated", _NOT_USED, _AGAIN)
            tensors = read_tensors(path)
            inputs = {leader: _item(leader, info["inputs"], tensors, act_shape) for leader, _ in info["inputs"].items()}
            cache = None
            if kv_shape is not None and info["cache"] is not None:
                keys, values = (_code_from(info["cache"][part], kv_shape) for part in ("keys", "values"))
                assert keys is not None and values is not None
                cache = CacheCodes(keys, values)
        except (OSError, LookupError, TypeError, ValueError, AttributeError, AssertionError) as error:
            raise NestQuantError(f"{path} or {FILE} is damaged ({error!r})", _NOT_USED, _AGAIN) from error
        return LayerStatistics(inputs, cache)


def remove_calibration(folder: Path) -> None:
    """Removes the files of a finished calibration, and its folder where nothing else is in it."""
    calibration = Calibration(folder)
    for name in (FILE, *map(_file_name, range(len(calibration.layers)))):
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


def _entry(leader: str, item: InputStatistics) -> dict[str, Any]:
    """What calibration.json says of an input; of experts that share one, the first has what they share."""
    entry: dict[str, Any] = {"members": list(item.members), "dead": item.dead}
    if item.source in (None, leader):
        entry["code"] = item.code and item.code.fitted()
    if item.parts > 1:
        entry["parts"] = item.parts
    if item.source is not None:
        entry |= {"source": item.source, "tokens": item.tokens, "pooled": item.pooled}
    return entry


def _item(leader: str, entries: Any, tensors: dict[str, Tensor], act_shape: Shape | None) -> InputStatistics:
    entry = entries[leader]
    source = entry.get("source")
    shared = source or leader
    return InputStatistics(
        tuple(entry["members"]),
        tensors[f"{leader}.hessian"],
        tensors[f"{leader}.noise"] * (act_shape is not None),
        _code_from(entries[shared]["code"], act_shape),
        int(entry["dead"]),
        tensors.get(f"{shared}.reflectors"),
        source=source,
        tokens=None if source is None else int(entry["tokens"]),
        pooled=0.0 if source is None else float(entry["pooled"]),
        parts=int(entry.get("parts", 1)),
    )


def _file_name(index: int) -> str:
    return f"layer-{index:05d}.safetensors"


def _code_from(value: Any, shape: Shape | None) -> VectorCode | None:
    return None if shape is None else vector_from(value, shape)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:12] + "…"
