"""A calibration on disk: one safetensors file a layer and `calibration.json`, written last, that says what it is of."""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..codecs.fit import ScaledCode
from ..codecs.heads import CacheCodes
from ..errors import NestQuantError
from ..files import read_json, replacing, sha256_file, write_json
from ..lattice.shape import CodeShape
from .statistics import InputStatistics, LayerStatistics

FILE = "calibration.json"
FORMAT_VERSION = 1
_OWN = re.compile(r"layer-\d{5}\.safetensors|\.layer-\d{5}\.safetensors\.\d+\.part")  # what no other program writes
_NOT_USED = "the calibration was not used"
_AGAIN = "run nestquant calibrate again"


class CalibrationWriter:
    """Writes layers as they come.

    Args:
        folder: must not exist, be empty, or hold nothing but layers of an unfinished calibration, which are removed.
        about: JSON-ready; what the calibration is of, compared again when it is used.

    Raises:
        NestQuantError: the folder holds something else.
    """

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        refuse_filled(folder)
        self.folder, self.about = folder, about
        self.discard()
        self.layers: list[dict[str, Any]] = []

    def add(self, layer: LayerStatistics) -> None:
        """Writes the next layer."""
        name = _file_name(len(self.layers))
        tensors = {}
        for leader, item in layer.inputs.items():
            tensors[f"{leader}.hessian"] = item.hessian.cpu().contiguous()
            tensors[f"{leader}.noise"] = item.noise.cpu().contiguous()
        with replacing(self.folder / name) as temporary:
            save_file(tensors, temporary)
        self.layers.append(
            {
                "sha256": sha256_file(self.folder / name),
                "inputs": {
                    leader: {"members": list(item.members), "code": _code_to(item.code)}
                    for leader, item in layer.inputs.items()
                },
                "cache": None
                if layer.cache is None
                else {"keys": _code_to(layer.cache.keys), "values": _code_to(layer.cache.values)},
            }
        )

    def finish(self) -> None:
        """Writes calibration.json, after which the folder is complete."""
        write_json(self.folder / FILE, {"format_version": FORMAT_VERSION, **self.about, "layers": self.layers})

    def discard(self) -> None:
        """Removes what was written, and the folder with it."""
        if self.folder.is_dir():
            for path in self.folder.iterdir():
                path.unlink()
            self.folder.rmdir()


def refuse_filled(folder: Path) -> None:
    """Raises NestQuantError unless the folder is absent, empty or holds an unfinished calibration."""
    if folder.exists() and not folder.is_dir():
        raise NestQuantError(f"{folder} is a file", "nothing was written", "choose another --output")
    if folder.is_dir() and not all(_OWN.fullmatch(path.name) for path in folder.iterdir()):
        raise NestQuantError(
            f"the output folder {folder} is not empty", "nothing was written", "remove it or choose another --output"
        )


class Calibration:
    """A finished calibration.

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
        self.layers = self.about.pop("layers", None)
        if not isinstance(self.layers, list):
            raise NestQuantError(f"{folder / FILE} is damaged", _NOT_USED, _AGAIN)

    def check(self, wanted: dict[str, Any]) -> None:
        """Raises NestQuantError when the calibration is of something else than `wanted`, naming the difference."""
        for name, value in wanted.items():
            not_needed = value is None and name.endswith("_code")  # what stays in 16 bits asks nothing of a calibration
            if self.about.get(name) != value and not not_needed:
                raise NestQuantError(
                    f"{self.folder} was calibrated with {name} {_short(self.about.get(name))}, not {_short(value)}",
                    _NOT_USED,
                    "calibrate again with the settings of this command",
                )

    def layer(self, index: int, act_shape: CodeShape | None, kv_shape: CodeShape | None) -> LayerStatistics:
        """Statistics of layer `index`.

        Raises:
            NestQuantError: the file is missing, truncated or altered.
        """
        path = self.folder / _file_name(index)
        try:
            info = self.layers[index]
            if sha256_file(path) != info["sha256"]:
                raise NestQuantError(f"{path} was altered or truncated", _NOT_USED, _AGAIN)
            tensors = load_file(path)
            inputs = {
                leader: InputStatistics(
                    tuple(item["members"]),
                    tensors[f"{leader}.hessian"],
                    tensors[f"{leader}.noise"] * (act_shape is not None),
                    _code_from(item["code"], act_shape),
                )
                for leader, item in info["inputs"].items()
            }
            cache = None
            if kv_shape is not None:
                keys, values = (_code_from(info["cache"][part], kv_shape) for part in ("keys", "values"))
                assert keys is not None and values is not None
                cache = CacheCodes(keys, values)
        except (OSError, SafetensorError, LookupError, TypeError, ValueError, AttributeError, AssertionError) as error:
            raise NestQuantError(f"{path} or {FILE} is damaged ({error!r})", _NOT_USED, _AGAIN) from error
        return LayerStatistics(inputs, cache)


def to_device(layer: LayerStatistics, device: torch.device) -> LayerStatistics:
    """The same statistics with their tensors on `device`."""
    inputs = {
        name: InputStatistics(item.members, item.hessian.to(device), item.noise.to(device), item.code)
        for name, item in layer.inputs.items()
    }
    return LayerStatistics(inputs, layer.cache)


def _file_name(index: int) -> str:
    return f"layer-{index:05d}.safetensors"


def _code_to(scaled: ScaledCode | None) -> dict[str, Any] | None:
    return None if scaled is None else {"unit": scaled.unit, "multipliers": list(scaled.code.multipliers)}


def _code_from(value: Any, shape: CodeShape | None) -> ScaledCode | None:
    if shape is None:
        return None
    return ScaledCode(shape.with_multipliers(tuple(value["multipliers"])), float(value["unit"]))


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:12] + "…"
