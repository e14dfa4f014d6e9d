"""The manifest of a packed checkpoint: size and hash of every file, and the hash of every tensor.

`nestquant_manifest.json` is written before `config.json`, which is the last file to appear: a folder without it is not
complete and loads nowhere.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..base.errors import NestQuantError
from ..models.shards import hash_tensor, read_shard
from ..storage.files import read_json, sha256_file, write_json
from ..storage.resume import WORK

MANIFEST = "nestquant_manifest.json"
REPORT = "quantization_report.json"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
FORMAT_VERSION = 1
ALTERED = "was altered: its hash is not that of the manifest"
_NOT_LOADED = "the checkpoint was not loaded"
_AGAIN = "fetch or quantize the checkpoint again"


def describe_files(folder: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """Size in bytes and SHA-256 of each file."""
    return {name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_file(folder / name)} for name in names}


def describe_tensors(folder: Path, shards: list[str]) -> dict[str, dict[str, Any]]:
    """File, dtype, shape, size in bytes and hash of each tensor in the shards, read piece by piece."""
    tensors = {}
    for name in shards:
        shard = read_shard(folder / name)
        for tensor, entry in shard.entries.items():
            tensors[tensor] = {
                "file": name,
                "dtype": entry.dtype,
                "shape": list(entry.shape),
                "bytes": entry.bytes,
                "sha256": hash_tensor(shard.path, entry),
            }
    return tensors


def write_index(folder: Path, tensors: dict[str, dict[str, Any]]) -> None:
    """Writes the index by which a loader finds the tensors that `describe_tensors` described."""
    total = sum(item["bytes"] for item in tensors.values())
    weight_map = {name: item["file"] for name, item in tensors.items()}
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def write_manifest(
    folder: Path, names: list[str], tensors: dict[str, dict[str, Any]], staged: dict[str, dict[str, Any]] | None = None
) -> None:
    """Writes the manifest of the files `names` in a folder, and of those that are described already."""
    files = describe_files(folder, names) | (staged or {})
    write_json(folder / MANIFEST, {"format_version": FORMAT_VERSION, "files": files, "tensors": tensors})


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
    if not isinstance(manifest, dict):
        raise _damaged(folder, "it is not an object")
    if manifest.get("format_version") != FORMAT_VERSION:
        raise NestQuantError(
            f"{folder / MANIFEST} has format version {manifest.get('format_version')}, "
            f"this nestquant reads {FORMAT_VERSION}",
            _NOT_LOADED,
            "install the nestquant that wrote it, or quantize again",
        )
    files, tensors = manifest.get("files"), manifest.get("tensors")
    if not isinstance(files, dict) or not all(_is_file_entry(name, item) for name, item in files.items()):
        raise _damaged(folder, "its list of files is not usable")
    if not isinstance(tensors, dict) or not all(_is_tensor_entry(item, files) for item in tensors.values()):
        raise _damaged(folder, "its list of tensors is not usable")
    for name in ("config.json", INDEX, REPORT):
        if name not in files:
            raise _damaged(folder, f"it does not list {name}")
    return manifest


def file_problem(folder: Path, name: str, expected: dict[str, Any], content: bool = True) -> str | None:
    """What is wrong with one file: missing, of another size or `content` than the manifest says; None if nothing."""
    path = folder / name
    if not path.is_file():
        return "is missing"
    size = path.stat().st_size
    if size != expected["bytes"]:
        return f"is {'truncated' if size < expected['bytes'] else 'too long'} ({size} of {expected['bytes']} bytes)"
    if content and sha256_file(path) != expected["sha256"]:
        return ALTERED
    return None


def check_files(folder: Path, tensors: bool = True) -> dict[str, Any]:
    """Compares size and hash of every file with the manifest, and returns the manifest.

    Files are hashed side by side. There is no switch to leave it out: an altered word decodes to another weight, which
    nothing later on would notice, and the files have to be read anyway.

    Args:
        folder: folder of the checkpoint.
        tensors: whether files with tensors are hashed as well.

    Raises:
        NestQuantError: a file is missing, truncated or altered, or a file with weights is not listed; it is named.
    """
    manifest = read_manifest(folder)
    files = manifest["files"]

    def look(name: str) -> str | None:
        return file_problem(folder, name, files[name], tensors or not name.endswith(".safetensors"))

    pool = ThreadPoolExecutor()  # hashing a file leaves the other cores free
    try:
        for name, problem in zip(files, pool.map(look, files), strict=True):
            if problem:
                raise NestQuantError(f"{folder / name} {problem}", _NOT_LOADED, _AGAIN)
    finally:
        pool.shutdown(cancel_futures=True)
    for name in stray_weights(folder, manifest):
        raise NestQuantError(f"{folder / name} is not in the manifest", _NOT_LOADED, "remove it, or fetch again")
    return manifest


def stray_weights(folder: Path, manifest: dict[str, Any]) -> list[str]:
    """Files that a loader could take for weights but that the manifest does not list.

    transformers prefers a `model.safetensors`, for one, to the shards of the index.
    """
    patterns = ("*.safetensors", "*.safetensors.index.json", "*.bin")
    return sorted({path.name for pattern in patterns for path in folder.glob(pattern)} - set(manifest["files"]))


def _is_file_entry(name: str, item: Any) -> bool:
    inside = bool(name) and name == Path(name).name and name != ".." and name.isprintable()  # none leaves the folder
    return inside and isinstance(item, dict) and type(item.get("bytes")) is int and isinstance(item.get("sha256"), str)


def _is_tensor_entry(item: Any, files: dict[str, Any]) -> bool:
    return (
        isinstance(item, dict)
        and isinstance(item.get("file"), str)
        and item["file"] in files
        and isinstance(item.get("dtype"), str)
        and isinstance(item.get("shape"), list)
        and type(item.get("bytes")) is int
        and isinstance(item.get("sha256"), str)
    )


def _damaged(folder: Path, what: str) -> NestQuantError:
    return NestQuantError(f"{folder / MANIFEST} is damaged: {what}", _NOT_LOADED, _AGAIN)
