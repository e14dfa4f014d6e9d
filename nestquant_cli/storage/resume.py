"""The state of a long run inside its output folder, by which the same command goes on where it was interrupted.

While a run is not complete its folder holds `INCOMPLETE/`: the key of the run, the names of the files that it writes,
a record of every part that is finished, and a lock that the process at work holds. A name is noted before its file is
written, so whatever of the folder is removed is the run's own; a part's file is in place before its record is, and the
state goes when the last file has come.
"""

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..base.errors import NestQuantError
from .files import leftovers, not_written, read_json, replacing, sha256_file, write_json
from .locks import Lock, refuse_held
from .output_checks import refuse_unusable_folder

WORK = "INCOMPLETE"
LOCK = "lock"
_KEY, _NAMES = "run.json", "files.json"
_NOTHING = "nothing was written"
NO_RESUME = "start over with --no-resume"

logger = logging.getLogger("nestquant")


class RunState:
    """An output folder and how far its run has come. The folder is locked until `release`, `close` or `give_up`.

    Args:
        folder: must not exist, be empty, or hold a run with the same key.
        key: JSON-ready settings that determine every byte of the result.
        last: name of the file that completes the folder.
        resume: whether to go on with an unfinished run; otherwise it is started over.
        start_over: how the user does that, for errors.

    Raises:
        NestQuantError: the folder holds something else, or a run with another key, or another process is writing it.
    """

    def __init__(
        self, folder: Path, key: dict[str, Any], last: str, resume: bool = True, start_over: str = NO_RESUME
    ) -> None:
        self.folder, self.work, self.last = folder, folder / WORK, last
        refuse_foreign(folder, last)
        try:
            self.work.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise not_written(self.work, error) from error
        self._lock: Lock | None = Lock(self.work / LOCK, folder)
        try:
            _refuse_occupied(folder)  # another process may have finished in the meantime
            self._names = self._read_names()
            if (self.work / _KEY).is_file():
                if resume or self.complete:
                    _refuse_other_key(folder, read_json(self.work / _KEY), key, start_over)
                else:
                    self.discard()
            write_json(self.work / _KEY, key)
            self._remove_leftovers()
        except BaseException:
            if (self.work / _KEY).is_file():
                self.release()
            else:
                self._leave()
            raise

    def __getstate__(self) -> dict[str, Any]:
        """For the other processes of a team: the lock stays with this one."""
        return {**self.__dict__, "_lock": None}

    @property
    def complete(self) -> bool:
        """Whether the last file is in place, and only the state is left over."""
        return self.last in self._names and (self.folder / self.last).is_file()

    @property
    def files(self) -> list[str]:
        """Names of the files in the folder that this run has written."""
        return sorted(name for name in self._names if (self.folder / name).is_file())

    def claim(self, name: str) -> None:
        """Notes that the run is going to write a file of this name.

        Raises:
            NestQuantError: the folder has such a file that is not of this run.
        """
        if name in self._names:
            return
        path = self.folder / name
        if os.path.lexists(path):
            raise NestQuantError(
                f"{path} was put there by something else than this run",
                "it was left as it is, and what is finished is kept",
                "move it away and repeat the command",
            )
        self._names.append(name)
        write_json(self.work / _NAMES, self._names)

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """As `files.replacing`, for a file of the run in its folder."""
        self.claim(name)
        with replacing(self.folder / name) as temporary:
            yield temporary

    def done(self, number: int, file: str) -> Any:
        """What `record` was told about part `number`, or None; a part without its file as it was is not done."""
        record = self.recorded(number)
        if record is None or record.get("file") != file:
            return None
        path = self.folder / file
        if not path.is_file() or sha256_file(path) != record.get("sha256"):
            logger.warning("%s is missing or was altered since it was written; it is made again", path)
            return None
        return record.get("info")

    def recorded(self, number: int) -> dict[str, Any] | None:
        """The record of part `number`, its file not looked at: `file`, `sha256` and `info`; None if there is none."""
        record = read_json(self._record(number)) if self._record(number).is_file() else None
        return record if isinstance(record, dict) else None

    def record(self, number: int, file: str, info: Any) -> None:
        """Notes that a part is finished; its file is in place."""
        write_json(self._record(number), {"file": file, "sha256": sha256_file(self.folder / file), "info": info})

    def close(self) -> None:
        """Removes the state of a complete run: the key after the records, the names and the lock last."""
        self._clear()
        self._leave()

    def discard(self) -> None:
        """Removes what an unfinished run has written, and nothing else of the folder."""
        try:
            self._clear()
            for name in self.files:
                (self.folder / name).unlink()
        except OSError as error:
            raise NestQuantError(
                f"what an earlier run has left in {self.folder} cannot be removed ({error.strerror or error})",
                _NOTHING,
                "mend its permissions, or choose another --output",
            ) from error
        self._names = []
        write_json(self.work / _NAMES, self._names)

    def give_up(self) -> None:
        """Leaves no folder behind where there is nothing to go on from; what the run did not write stays."""
        # where nothing can be written, nothing can be removed either
        with contextlib.suppress(OSError, NestQuantError):
            self.discard()
            self._leave()
            self.folder.rmdir()

    def release(self) -> None:
        """Lets another process go on with the run."""
        if self._lock is not None:
            self._lock.release()

    def _leave(self) -> None:
        for name in (_KEY, _NAMES):
            (self.work / name).unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.release(remove=True)
        with contextlib.suppress(OSError):
            self.work.rmdir()

    def _clear(self) -> None:
        """Removes records and what else is kept beside key, names and lock."""
        for path in self.work.iterdir():
            if path.name not in (_KEY, _NAMES, LOCK):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _read_names(self) -> list[str]:
        path = self.work / _NAMES
        names = read_json(path) if path.is_file() else []
        if not isinstance(names, list) or not all(isinstance(name, str) and _is_plain(name) for name in names):
            raise NestQuantError(f"{path} is damaged", _NOTHING, f"remove {self.folder}, or choose another --output")
        return list(names)

    def _remove_leftovers(self) -> None:
        """Removes what `replacing` could not remove, because the process was killed or lost the right to."""
        for name in self._names:
            for path in leftovers(self.folder / name):
                path.unlink()
        for path in self.work.glob(".*.part"):
            path.unlink()

    def _record(self, number: int) -> Path:
        return self.work / f"part-{number:05d}.json"


def refuse_foreign(folder: Path, last: str) -> None:
    """Raises NestQuantError unless the folder is absent, empty or holds a run that no process is at work on.

    Args:
        folder: the output folder.
        last: name of the file that completes it.
    """
    refuse_unusable_folder(folder)
    work = folder / WORK
    refuse_held(work / LOCK, folder)
    if (folder / last).is_file() and work.is_dir() and {each.name for each in work.iterdir()} <= {_NAMES, LOCK}:
        shutil.rmtree(work)  # the run was complete but for this
    _refuse_occupied(folder)


def _refuse_occupied(folder: Path) -> None:
    """Raises NestQuantError where a folder has files and no run's key."""
    if folder.is_dir() and not (folder / WORK / _KEY).is_file() and any(each.name != WORK for each in folder.iterdir()):
        raise NestQuantError(
            f"the output folder {folder} is not empty", _NOTHING, "remove it or choose another --output"
        )


def _is_plain(name: str) -> bool:
    """Whether a name is that of a file in the folder itself: the state may come from anyone."""
    return name == Path(name).name and name not in ("", ".", "..", WORK)


def _refuse_other_key(folder: Path, old: Any, new: dict[str, Any], start_over: str) -> None:
    before, after = _flat(old), _flat(new)
    differing = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
    if differing:
        name = differing[0]
        raise NestQuantError(
            f"{folder} holds an unfinished run with {name} {before.get(name)} instead of {after.get(name)}",
            _NOTHING,
            f"repeat that command, {start_over}, or choose another --output",
        )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        key: leaf for name, item in value.items() for key, leaf in _flat(item, f"{prefix}.{name}".lstrip(".")).items()
    }
