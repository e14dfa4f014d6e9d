"""The state of a long run inside its output folder, by which the same command goes on where it was interrupted.

While a run is not complete its folder holds `INCOMPLETE/`: the key of the run, and a record of every part that is
finished. A part's own file is in place before its record is, and the state goes when the last file has come.
"""

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any

from .errors import NestQuantError
from .files import read_json, remove_leftovers, write_json

WORK = "INCOMPLETE"
_KEY = "run.json"
_NOTHING = "nothing was written"


class RunState:
    """An output folder and how far its run has come.

    Args:
        folder: must not exist, be empty, or hold a run with the same key.
        key: JSON-ready settings that determine every byte of the result.
        last: name of the file that completes the folder.
        resume: whether to go on with an unfinished run; otherwise it is started over.

    Raises:
        NestQuantError: the folder holds something else, or a run with another key.
    """

    def __init__(self, folder: Path, key: dict[str, Any], last: str, resume: bool = True) -> None:
        self.folder, self.work, self.last = folder, folder / WORK, last
        refuse_foreign(folder, last)
        if (self.work / _KEY).is_file():
            if resume or self.complete:
                _refuse_other_key(folder, read_json(self.work / _KEY), key)
            else:
                self.discard()
        write_json(self.work / _KEY, key)
        for place in (self.folder, self.work):
            remove_leftovers(place)

    @property
    def complete(self) -> bool:
        """Whether the last file is in place, and only the state is left over."""
        return (self.folder / self.last).is_file()

    def done(self, number: int, file: str) -> Any:
        """What `record` was told about part `number`, or None; a part without its file is not done."""
        record = self._record(number)
        return read_json(record) if record.is_file() and (self.folder / file).is_file() else None

    def record(self, number: int, info: Any) -> None:
        """Notes that a part is finished; its file is in place."""
        write_json(self._record(number), info)

    def file_mode(self) -> int:
        """Permissions of an ordinary new file here, for libraries that give theirs to the owner alone."""
        return (self.work / _KEY).stat().st_mode & 0o777

    def close(self) -> None:
        """Removes the state of a complete run, the key last."""
        for path in self.work.iterdir():
            if path.name != _KEY:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.rmtree(self.work)

    def discard(self) -> None:
        """Removes all that an unfinished run has written; only what is of this program is in the folder."""
        for path in self.folder.iterdir():
            if path.is_file():
                path.unlink()
        shutil.rmtree(self.work)

    def give_up(self) -> None:
        """Leaves no folder behind where there is nothing to go on from."""
        with contextlib.suppress(OSError):  # where nothing can be written, nothing can be removed either
            self.discard()
            self.folder.rmdir()

    def _record(self, number: int) -> Path:
        return self.work / f"part-{number:05d}.json"


def refuse_foreign(folder: Path, last: str) -> None:
    """Raises NestQuantError unless the folder is absent, empty or holds a run.

    Args:
        folder: of the output.
        last: name of the file that completes it.
    """
    work = folder / WORK
    if folder.exists() and not folder.is_dir():
        raise NestQuantError(f"{folder} is a file", _NOTHING, "choose another --output")
    if work.is_dir() and (folder / last).is_file() and not (work / _KEY).is_file():
        shutil.rmtree(work)  # the run was complete but for this
    if folder.is_dir() and any(folder.iterdir()) and not work.is_dir():
        raise NestQuantError(
            f"the output folder {folder} is not empty", _NOTHING, "remove it or choose another --output"
        )


def refuse_full_disk(folder: Path, needed: int, what: str) -> None:
    """Raises NestQuantError when a folder's disk has less room than will be needed.

    Args:
        folder: need not exist.
        needed: bytes.
        what: they are for, in the message.
    """
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise NestQuantError(
            f"{what} takes {needed:,} bytes and {place} has {free:,} free",
            _NOTHING,
            "free space, or choose another --output",
        )
    if not os.access(place, os.W_OK | os.X_OK):
        raise NestQuantError(
            f"{place} cannot be written to", _NOTHING, "change its permissions, or choose another --output"
        )


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
