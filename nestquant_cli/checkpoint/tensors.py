"""Compares the tensors in the shards with the manifest, with their hashes, and with what the model needs."""

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..base.progress import track
from ..models.shards import Entry, Shard
from .expected import Expected
from .findings import VerifyReport
from .manifest import ALTERED


class TensorChecks:
    """The tensors of a checkpoint that are sound so far; every check leaves fewer of them.

    Args:
        report: report that problems are added to.
        described: `tensors` of the manifest.
        shards: shards that could be read, by file name.
    """

    def __init__(self, report: VerifyReport, described: dict[str, Any], shards: dict[str, Shard]) -> None:
        self.report, self.described, self.shards = report, described, shards
        self.found: dict[str, tuple[str, Entry]] = {}  # file and entry of every tensor
        for file, shard in shards.items():
            for name, entry in shard.entries.items():
                if name in self.found:
                    report.add(file, name, f"is in {self.found[name][0]} too")
                else:
                    self.found[name] = file, entry
        self.sound: set[str] = set()

    def compare(self, expected: dict[str, Expected] | None) -> None:
        """Names, files, dtypes and shapes.

        Args:
            expected: the tensors of the model; None where it could not be built.
        """
        for name in sorted({*self.found, *self.described, *(expected or {})}):
            file, what = self._difference(name, expected)
            if self.report.add(file, name, what) and name in self.found:
                self.sound.add(name)

    def _difference(self, name: str, expected: dict[str, Expected] | None) -> tuple[str, str | None]:
        """The file to blame, and what is wrong."""
        described, stored = self.described.get(name), self.found.get(name)
        wanted = None if expected is None else expected.get(name)
        if stored is None:
            if described is None:
                missing = wanted is not None and wanted.required
                return "config.json", "its model needs this tensor, which no shard has" if missing else None
            unread = described["file"] not in self.shards  # which is a problem of that file
            return described["file"], None if unread else "is missing"
        file, entry = stored
        what = f"{entry.dtype} {list(entry.shape)}"
        if described is None:
            return file, "is not in the manifest"
        if described["file"] != file:
            return file, f"belongs to {described['file']}"
        if (described["dtype"], described["shape"]) != (entry.dtype, list(entry.shape)):
            return file, f"is {what}, not {described['dtype']} {described['shape']} as in the manifest"
        if described["bytes"] != entry.bytes:
            return file, f"has {entry.bytes} bytes, not {described['bytes']} as in the manifest"
        if expected is not None and wanted is None:
            return file, "is of no use to the model"
        if wanted is not None and not _fits(entry, wanted):
            return file, f"is {what}, the model needs {wanted.dtype or 'floating point'} {list(wanted.shape)}"
        return file, None

    def hash(self) -> None:
        """The bytes of every sound tensor against the manifest."""
        names = sorted(self.sound, key=lambda name: (self.found[name][0], self.found[name][1].start))
        for name in track(names, "hashing tensors"):
            altered = hashlib.sha256(self.data(name).data).hexdigest() != self.described[name]["sha256"]
            if self.report.add(self.found[name][0], name, ALTERED if altered else None):
                self.report.tensors += 1
            else:
                self.sound.remove(name)

    def data(self, name: str) -> NDArray[np.uint8]:
        """The bytes of a tensor, mapped from its file."""
        file, entry = self.found[name]
        if entry.bytes == 0:
            return np.empty(0, dtype=np.uint8)
        path = self.shards[file].path
        return np.memmap(path, dtype=np.uint8, mode="r", offset=entry.start, shape=(entry.bytes,))


def _fits(entry: Entry, wanted: Expected) -> bool:
    dtype = wanted.dtype == entry.dtype if wanted.dtype else "float" in entry.dtype
    return dtype and wanted.shape == entry.shape
