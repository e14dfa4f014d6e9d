"""The folder a packed checkpoint is written into: one shard a decoder layer, one for the rest, config.json last.

While it is not complete, `.nestquant/` inside it holds the run's key and, for every finished layer, what is to go into
config.json and the report. The same command goes on after the last finished layer; another one is refused.
"""

import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from ..errors import NestQuantError
from ..files import read_json, replacing, write_json
from .manifest import FORMAT_VERSION, INDEX, MANIFEST, REPORT, WORK, describe_files, describe_tensors

_NOTHING = "nothing was written"


class Output:
    """An output folder, new or resumed.

    Args:
        folder: where the checkpoint goes; it must not exist, be empty, or hold an unfinished run with the same key.
        key: JSON-ready settings that determine every byte of the result.
        parts: how many shards there will be; the last is for what is not quantized.
        resume: whether to go on with an unfinished run; otherwise it is started over.

    Raises:
        NestQuantError: the folder holds something else, or a run with another key.
    """

    def __init__(self, folder: Path, key: dict[str, Any], parts: int, resume: bool) -> None:
        self.folder, self.parts, self.work = folder, parts, folder / WORK
        refuse_foreign(folder)
        if (self.work / "run.json").is_file():
            if resume:
                _refuse_other_key(folder, read_json(self.work / "run.json"), key)
            else:
                self.discard()
        write_json(self.work / "run.json", key)

    def shard(self, number: int) -> str:
        """Name of shard `number`, from 0."""
        return f"model-{number + 1:05d}-of-{self.parts:05d}.safetensors"

    def done(self, number: int) -> dict[str, Any] | None:
        """What `write` was told about a finished part, or None."""
        record = self.work / f"part-{number:05d}.json"
        return read_json(record) if record.is_file() and (self.folder / self.shard(number)).is_file() else None

    def write(self, number: int, tensors: dict[str, Tensor], info: dict[str, Any]) -> None:
        """Writes a shard, then records it as finished."""
        with replacing(self.folder / self.shard(number)) as temporary:
            contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            save_file(contiguous, temporary, metadata={"format": "pt"})
            temporary.chmod((self.work / "run.json").stat().st_mode & 0o777)  # safetensors keeps others from reading
        write_json(self.work / f"part-{number:05d}.json", info)

    def finish(self, config: dict[str, Any], report: dict[str, Any]) -> None:
        """Writes index, report, manifest and, last, config.json; the folder is complete after it."""
        shards = [self.shard(number) for number in range(self.parts)]
        tensors = describe_tensors(self.folder, shards)
        total = sum(item["bytes"] for item in tensors.values())
        weight_map = {name: item["file"] for name, item in tensors.items()}
        write_json(self.folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
        write_json(self.folder / REPORT, report)
        staged = self.work / "config.json"
        write_json(staged, config)
        names = [path.name for path in sorted(self.folder.iterdir()) if path.is_file() and path.name != MANIFEST]
        files = describe_files(self.folder, names) | describe_files(self.work, ["config.json"])
        write_json(self.folder / MANIFEST, {"format_version": FORMAT_VERSION, "files": files, "tensors": tensors})
        with replacing(self.folder / "config.json") as temporary:
            shutil.copyfile(staged, temporary)
        shutil.rmtree(self.work)

    def discard(self) -> None:
        """Removes what an unfinished run has written."""
        for path in [*self.folder.glob("model-*.safetensors"), *self.folder.glob(".*.part")]:
            path.unlink()
        shutil.rmtree(self.work)


def refuse_foreign(folder: Path) -> None:
    """Raises NestQuantError unless the folder is absent, empty or holds an unfinished run."""
    work = folder / WORK
    if folder.exists() and not folder.is_dir():
        raise NestQuantError(f"{folder} is a file", _NOTHING, "choose another --output")
    if folder.is_dir() and any(folder.iterdir()) and not work.is_dir():
        raise NestQuantError(
            f"the output folder {folder} is not empty", _NOTHING, "remove it or choose another --output"
        )
    if work.is_dir() and (folder / "config.json").is_file():
        shutil.rmtree(work)  # the run was complete but for this
        refuse_foreign(folder)


def _refuse_other_key(folder: Path, old: Any, new: dict[str, Any]) -> None:
    before, after = _flat(old), _flat(new)
    differing = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
    if differing:
        name = differing[0]
        raise NestQuantError(
            f"{folder} holds an unfinished run with {name} {before.get(name)} instead of {after.get(name)}",
            _NOTHING,
            "repeat that command, start over with --no-resume, or choose another --output",
        )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        key: leaf for name, item in value.items() for key, leaf in _flat(item, f"{prefix}.{name}".lstrip(".")).items()
    }
