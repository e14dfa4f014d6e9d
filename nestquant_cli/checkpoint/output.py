"""The folder a packed checkpoint is written into: one shard a decoder layer, one for the rest, config.json last."""

import contextlib
import copy
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from ..base.errors import NestQuantError
from ..models.shard_writer import write_shard
from ..storage.files import not_written, read_json, replacing, write_json
from ..storage.resume import NO_RESUME, RunState
from .manifest import CONFIG, INDEX, MANIFEST, REPORT, describe_files, describe_tensors, write_index, write_manifest


class Output:
    """An output folder, new or resumed, and locked; `with` unlocks it where it ends before the folder is complete.

    Args:
        folder: checkpoint folder, which must not exist, be empty, or hold an unfinished run with the same key.
        key: JSON-ready settings that determine every byte of the result.
        parts: number of shards; the last is for what is not quantized.
        resume: whether to resume an unfinished run; otherwise it is started over.
        start_over: how the user does that, for errors.

    Raises:
        NestQuantError: the folder holds something else, or a run with another key.
    """

    def __init__(
        self, folder: Path, key: dict[str, Any], parts: int, resume: bool, start_over: str = NO_RESUME
    ) -> None:
        self.folder, self.parts = folder, parts
        self.state = RunState(folder, key, CONFIG, resume, start_over)

    def __enter__(self) -> "Output":
        return self

    def __exit__(self, *_: object) -> None:
        self.state.release()

    def divided(self, parts: int) -> "Output":
        """The same folder and run with another number of shards."""
        other = copy.copy(self)
        other.parts = parts
        return other

    def shard(self, number: int) -> str:
        """Name of shard `number`, from 0."""
        return f"model-{number + 1:05d}-of-{self.parts:05d}.safetensors"

    def done(self, number: int) -> dict[str, Any] | None:
        """What `write` was given as `info` of a finished part; None where it is not finished."""
        info: dict[str, Any] | None = self.state.done(number, self.shard(number))
        return info

    def write(
        self,
        number: int,
        tensors: dict[str, Tensor],
        info: dict[str, Any],
        fetch: Callable[[str], Iterable[Tensor]] | None = None,
    ) -> None:
        """Writes a shard, then records it as finished.

        Args:
            number: number of the shard.
            tensors: its tensors by their full names.
            info: what `done` gives back, JSON-ready.
            fetch: gives a tensor that is on the meta device, in pieces along its first dimension.
        """
        name = self.shard(number)
        with self.state.writing(name) as temporary:
            write_shard(temporary, tensors, fetch)
        self.state.record(number, name, info)

    def add_files(self, save: Callable[[Path], object]) -> None:
        """Adds the files that `save` writes into the folder it is given, one by one whole or not at all."""
        staging = self.state.work / "files"
        shutil.rmtree(staging, ignore_errors=True)
        try:
            staging.mkdir()
            save(staging)
        except NestQuantError:
            raise
        except Exception as error:  # libraries that are not written in Python raise errors of no particular kind
            raise not_written(staging, error) from error
        for path in sorted(staging.iterdir()):
            with self.state.writing(path.name) as temporary:
                shutil.copyfile(path, temporary)

    def finish(self, config: dict[str, Any], report: dict[str, Any]) -> None:
        """Writes index, report, manifest and, last, config.json; the folder is complete after it."""
        shards = [self.shard(number) for number in range(self.parts)]
        for name in (INDEX, REPORT, MANIFEST, CONFIG):
            self.state.claim(name)
        tensors = describe_tensors(self.folder, shards)
        write_index(self.folder, tensors)
        write_json(self.folder / REPORT, report)
        staged = self.state.work / CONFIG
        write_json(staged, config)
        names = [name for name in self.state.files if name != MANIFEST]
        write_manifest(self.folder, names, tensors, describe_files(self.state.work, [CONFIG]))
        with replacing(self.folder / CONFIG) as temporary:
            shutil.copyfile(staged, temporary)
        self.state.close()

    def give_up(self) -> None:
        """Leaves no folder behind where no part is finished."""
        with contextlib.suppress(OSError):  # a folder that cannot be looked into stays as it is
            if self.state.recorded(0) is None:
                self.state.give_up()

    def finished(self) -> dict[str, Any] | None:
        """The report of a run that is complete but for its state, which is removed; else None."""
        if not self.state.complete:
            return None
        self.state.close()
        report: dict[str, Any] = read_json(self.folder / REPORT)
        return report
