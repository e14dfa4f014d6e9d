"""The manifest of a packed checkpoint: size and hash of every file, and the hash of every tensor.

`nestquant_manifest.json` is written before `config.json`, which is the last file to appear: a folder without it is not
complete and loads nowhere.
"""

import hashlib
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from ..errors import NestQuantError
from ..files import read_json, sha256_file

MANIFEST = "nestquant_manifest.json"
REPORT = "quantization_report.json"
WORK = ".nestquant"  # state of an unfinished run, inside the output folder
_NOT_LOADED = "the checkpoint was not loaded"
_AGAIN = "fetch or quantize the checkpoint again"


def describe_files(folder: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """Size in bytes and SHA-256 of each file."""
    return {name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_file(folder / name)} for name in names}


def tensor_hash(tensor: Tensor) -> str:
    """Hex SHA-256 of a tensor's bytes in memory order, little-endian."""
    import torch

    return hashlib.sha256(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()).hexdigest()


def describe_tensors(folder: Path, shards: list[str]) -> dict[str, dict[str, Any]]:
    """File, dtype, shape, size in bytes and hash of each tensor in the shards."""
    tensors = {}
    for shard in shards:
        with safe_open(folder / shard, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - a safetensors handle is no mapping
                tensor = file.get_tensor(name)
                tensors[name] = {
                    "file": shard,
                    "dtype": str(tensor.dtype).removeprefix("torch."),
                    "shape": list(tensor.shape),
                    "bytes": tensor.nbytes,
                    "sha256": tensor_hash(tensor),
                }
    return tensors


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a complete checkpoint.

    Raises:
        NestQuantError: the folder is incomplete or the manifest damaged.
    """
    if not (folder / "config.json").is_file():
        state = "its quantization did not finish" if (folder / WORK).exists() else "it has no config.json"
        raise NestQuantError(f"{folder} is incomplete: {state}", _NOT_LOADED, "run the quantize command again")
    if not (folder / MANIFEST).is_file():
        raise NestQuantError(f"{folder} has no {MANIFEST}", _NOT_LOADED, _AGAIN)
    manifest = read_json(folder / MANIFEST)
    files = manifest.get("files") if isinstance(manifest, dict) else None
    tensors = manifest.get("tensors") if isinstance(manifest, dict) else None
    if not isinstance(files, dict) or not isinstance(tensors, dict) or not _well_formed(files):
        raise NestQuantError(f"{folder / MANIFEST} is damaged", _NOT_LOADED, _AGAIN)
    return manifest


def check_files(folder: Path) -> dict[str, Any]:
    """Compares size and hash of every file with the manifest, and returns the manifest.

    Raises:
        NestQuantError: a file is missing, truncated or altered, naming it.
    """
    manifest = read_manifest(folder)
    for name, expected in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise NestQuantError(f"{path} is missing", _NOT_LOADED, _AGAIN)
        size = path.stat().st_size
        if size != expected["bytes"]:
            state = "truncated" if size < expected["bytes"] else "too long"
            raise NestQuantError(f"{path} is {state} ({size} of {expected['bytes']} bytes)", _NOT_LOADED, _AGAIN)
        if sha256_file(path) != expected["sha256"]:
            raise NestQuantError(f"{path} was altered: its hash is not that of the manifest", _NOT_LOADED, _AGAIN)
    return manifest


def _well_formed(files: dict[str, Any]) -> bool:
    return all(
        isinstance(item, dict)
        and type(item.get("bytes")) is int
        and isinstance(item.get("sha256"), str)
        and name == Path(name).name  # no path may leave the folder
        for name, item in files.items()
    )
