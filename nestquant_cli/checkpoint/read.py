"""Reading a packed checkpoint: the check before loading, and its layout."""

from pathlib import Path
from typing import Any

from ..base.errors import NestQuantError
from ..modules.layout import QUANT_METHOD, Layout
from ..modules.parse_layout import parse_layout
from ..storage.files import read_json
from ..storage.resume import WORK
from .expected import expected_tensors
from .manifest import INDEX, MANIFEST, check_files, read_manifest

_NOT_READ = "it was not read"


def check_checkpoint(folder: Path | str, tensors: bool = True) -> None:
    """Refuses a checkpoint that is incomplete, truncated or altered, or whose config.json is not usable.

    Args:
        folder: folder of the checkpoint.
        tensors: hash the files with tensors too; their sizes are compared in any case.

    Raises:
        NestQuantError: naming the file and what is wrong with it.
    """
    folder = Path(folder)
    manifest = check_files(folder, tensors)
    layout = read_layout(folder)
    problem = index_problem(folder, manifest)
    if problem:
        raise NestQuantError(
            f"{folder / INDEX} {problem}", "the checkpoint was not loaded", "fetch or quantize the checkpoint again"
        )
    if not tensors:  # by then nothing was built; a loader that has tensors hashed has built the model already
        _refuse_other_shapes(folder, layout, manifest["tensors"])


def _refuse_other_shapes(folder: Path, layout: Layout, described: dict[str, Any]) -> None:
    """Raises NestQuantError unless config.json describes a model of the tensors that the manifest lists."""
    for name, wanted in expected_tensors(folder, layout).items():
        stored = described.get(name)
        shape = None if stored is None else tuple(stored["shape"])
        if shape != wanted.shape and (wanted.required or stored is not None):
            raise NestQuantError(
                f"{folder} has {name} of shape {shape}, its config.json calls for {wanted.shape}",
                "the checkpoint was not loaded",
                "fetch or quantize the checkpoint again",
            )


def index_problem(folder: Path, manifest: dict[str, Any]) -> str | None:
    """How the index, by which a loader finds the tensors, differs from the manifest; None where it does not."""
    index = read_json(folder / INDEX)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict):
        return "has no weight_map"
    expected = {name: item["file"] for name, item in manifest["tensors"].items()}
    for name in sorted({*weight_map, *expected}):
        if weight_map.get(name) != expected.get(name):
            return f"places {name} in {weight_map.get(name)}, the manifest in {expected.get(name)}"
    return None


def open_checkpoint(folder: Path) -> dict[str, Any]:
    """The manifest of a folder that is a complete packed checkpoint, before anything in it is trusted.

    Raises:
        NestQuantError: no such folder, not a packed checkpoint, incomplete, or a damaged manifest.
    """
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise NestQuantError(f"{folder} {what}", _NOT_READ, "give a folder that 'nestquant quantize' wrote")
    if not (folder / MANIFEST).is_file() and not (folder / WORK).exists():
        if not (folder / "config.json").is_file():
            raise _not_packed(folder)
        read_quantization_config(folder)
    return read_manifest(folder)


def read_layout(folder: Path) -> Layout:
    """The layout of the packed modules.

    Raises:
        NestQuantError: not a packed checkpoint, or a field is not usable.
    """
    return parse_layout(read_quantization_config(folder).get("layout"))


def read_quantization_config(folder: Path) -> dict[str, Any]:
    """`quantization_config` of config.json.

    Raises:
        NestQuantError: there is none of ours.
    """
    config = read_json(folder / "config.json")
    section = config.get("quantization_config") if isinstance(config, dict) else None
    if not isinstance(section, dict) or section.get("quant_method") != QUANT_METHOD:
        raise _not_packed(folder)
    return section


def _not_packed(folder: Path) -> NestQuantError:
    return NestQuantError(
        f"{folder} is not a packed checkpoint of nestquant", _NOT_READ, "give a folder that 'nestquant quantize' wrote"
    )
