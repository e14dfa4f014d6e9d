"""Writes calibrations: one safetensors file a layer, and last `calibration.json` with the model, text and codes."""

import contextlib
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from ..models.shard_writer import GrowingShard
from ..parallel.team import Team
from ..rotation.seeds import text_of
from ..storage.files import not_written, write_json
from ..storage.resume import RunState
from .statistics import InputStatistics, LayerStatistics
from .store import FILE, FORMAT_VERSION, file_name


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
        return self.state.done(index, file_name(index)) is not None

    def write(self, index: int, parts: Iterable[LayerStatistics], linears: Collection[str], group: Team) -> None:
        """Writes layer `index`, part by part as its statistics come, then records it as finished.

        Args:
            index: number of the layer.
            parts: its statistics; no more than one part is in memory.
            linears: names of the layer's Linears.
            group: the processes, all of which call this; rank 0 writes.
        """
        with ExitStack() as at_end:
            record = _Record()
            group.run_on_rank0(lambda: record.begin(at_end, self.state.writing(file_name(index)), linears))
            for part in parts:
                group.run_on_rank0(partial(record.add, part))
                del part
            group.run_on_rank0(lambda: record.end(at_end))
        group.run_on_rank0(lambda: self.state.record(index, file_name(index), record.entries))

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


class _Record:
    """The file of one layer while it is written.

    Attributes:
        entries: what calibration.json says of the layer.
    """

    def __init__(self) -> None:
        self.entries: dict[str, Any] = {"inputs": {}, "cache": None}

    def begin(
        self, at_end: ExitStack, writing: contextlib.AbstractContextManager[Path], linears: Collection[str]
    ) -> None:
        """Opens the file; leaving `at_end` with an error removes it."""
        temporary = at_end.enter_context(writing)
        leaves = "hessian", "noise", "reflectors"
        with _refusing(temporary):
            self._shard = GrowingShard(temporary, [f"{name}.{leaf}" for name in linears for leaf in leaves])
        at_end.callback(self._shard.abandon)

    def add(self, part: LayerStatistics) -> None:
        """Writes the matrices of one part of the layer."""
        for leader, item in part.inputs.items():
            tensors = {"hessian": item.hessian, "noise": item.noise}
            if item.reflectors is not None and item.source in (None, leader):
                tensors["reflectors"] = item.reflectors
            with _refusing(self._shard.path):
                for leaf, tensor in tensors.items():
                    self._shard.add(f"{leader}.{leaf}", tensor)
            self.entries["inputs"][leader] = _entry(leader, item)
        self.entries["cache"] = part.cache and part.cache.to_dict()

    def end(self, at_end: ExitStack) -> None:
        """Completes the file, which then has its name."""
        with _refusing(self._shard.path):
            self._shard.close()
        at_end.close()


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Turns an error of the disk into the one line that all processes get."""
    try:
        yield
    except OSError as error:
        raise not_written(path, error) from error


def _entry(leader: str, item: InputStatistics) -> dict[str, Any]:
    """What calibration.json says of an input; of experts that share one, the first has what they share."""
    entry: dict[str, Any] = {"members": list(item.members), "dead": item.dead}
    if item.source in (None, leader):
        entry["code"] = item.code and item.code.fitted()
        entry |= {} if item.factors is None else {"factors": text_of(item.factors)}
    if item.parts > 1:
        entry["parts"] = item.parts
    if item.source is not None:
        entry |= {"source": item.source, "tokens": item.tokens, "pooled": item.pooled}
    return entry
