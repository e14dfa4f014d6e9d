"""Which of a model's files hold its weights: one set of them, the same for every reader."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..base.errors import NestQuantError
from ..storage.files import read_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
INDEX_END = ".safetensors.index.json"
CHOICE = "transformers_weights"  # the key of config.json that names file or index by hand
NOT_LOADED = "no model was loaded"


@dataclass(frozen=True)
class WeightSet:
    """The files with the weights.

    Attributes:
        entry: the file or the index that transformers is to be given; None where it finds no way in by itself.
        files: names of the files, sorted.
    """

    entry: str | None
    files: tuple[str, ...]


def weight_set(folder: Path, names: Collection[str], config: Any, label: str) -> WeightSet:
    """The set that config.json names, else the index of the usual name, else the usual file, else the only other index.

    Args:
        folder: model folder, in which an index is read if there is one.
        names: names of all files, in the folder or in its repository on the Hub.
        config: the parsed config.json.
        label: what errors call the model.

    Raises:
        NestQuantError: no weights, only pickles, several sets under unusual names, or an index that cannot be used.
    """
    indices = sorted(name for name in names if name.endswith(INDEX_END))
    shards = sorted(name for name in names if name.endswith(".safetensors"))
    chosen = config.get(CHOICE) if isinstance(config, dict) else None
    if chosen is not None and chosen not in (*indices, *shards):
        raise NestQuantError(
            f"{label} has no {chosen}, which its config.json names as {CHOICE}",
            NOT_LOADED,
            "download or copy the model again",
        )
    if not indices and not shards:
        raise _without_weights(names, label)
    if chosen is None:
        chosen = INDEX if INDEX in indices else SINGLE if SINGLE in shards else None
    if chosen is None and len(indices) > 1:
        raise NestQuantError(
            f"{label} has {len(indices)} sets of weights, {' and '.join(indices[:2])}",
            NOT_LOADED,
            f'name one in its config.json: "{CHOICE}": "{indices[0]}"',
        )
    if chosen is None:
        chosen = indices[0] if indices else shards[0] if len(shards) == 1 else None
    if chosen is None:
        return WeightSet(None, tuple(shards))
    files = _indexed_files(folder / chosen) if chosen.endswith(INDEX_END) else {chosen}
    return WeightSet(chosen, tuple(sorted(files)))


def _without_weights(names: Collection[str], label: str) -> NestQuantError:
    if any(name.endswith(".bin") for name in names):
        return NestQuantError(
            f"{label} has its weights only in .bin files, which are pickles",
            NOT_LOADED,
            "use a model with safetensors files, or save it as such: no pickle is ever read",
        )
    remedy = "download or copy the model again"
    if any(name.endswith(".gguf") for name in names):
        remedy = "give one of its .gguf files as MODEL; 'hf download ID FILE' fetches one from the Hub"
    return NestQuantError(f"{label} has no .safetensors weight file", NOT_LOADED, remedy)


def _indexed_files(index: Path) -> set[str]:
    """File names of an index, which are to be plain names: a folder may come from anyone."""
    value = read_json(index)
    weight_map = value.get("weight_map") if isinstance(value, dict) else None
    names: list[Any] = list(weight_map.values()) if isinstance(weight_map, dict) else [None]
    plain = all(isinstance(name, str) and name == Path(name).name and name not in ("", "..") for name in names)
    if not plain or not names:
        raise NestQuantError(f"{index} has no usable weight_map", NOT_LOADED, "download or copy the model again")
    return set(names)
