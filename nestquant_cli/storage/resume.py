"""A run that ends in a complete folder: the same command resumes it where it was interrupted, to the same bytes.

While a run is not complete its folder holds `INCOMPLETE/`: the key of the run, the names of the files that it writes,
a record of every part that is finished, and a lock that the process at work holds. A name is noted before its file is
written, so that only files of the run are ever removed. A part's file is in place before its record is, and the state
goes when the last file has come.
"""

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..base.errors import NestQuantError
from .files import leftovers, read_json, replacing, sha256_file, write_json
from .locks import refuse_held
from .output_checks import refuse_unusable_folder
from .records import Record, RecordFolder, Snapshot
from .run import NOTHING_WRITTEN, Run, refuse_occupied, refuse_other_key

WORK = "INCOMPLETE"
LOCK = "lock"
_KEY, _NAMES = "run.json", "files.json"
NO_RESUME = "start over with --no-resume"

logger = logging.getLogger("nestquant")


class RunState(Run):
    """An output folder and how far its run has come. The folder is locked until `release`, `close` or `give_up`.

    Args:
        folder: output folder, which must not exist, be empty, or hold a run with the same key.
        key: JSON-ready settings that determine every byte of the result.
        last: name of the file that completes the folder.
        resume: whether to resume an unfinished run; otherwise it is started over.
        start_over: how the user does that, for errors.

    Attributes:
        work: folder of the state, in which a step may keep files of its own until the run is closed.

    Raises:
        NestQuantError: the folder holds something else, or a run with another key, or another process is writing it.
    """

    def __init__(
        self, folder: Path, key: dict[str, Any], last: str, resume: bool = True, start_over: str = NO_RESUME
    ) -> None:
        self.work, self.last = folder / WORK, last
        super().__init__(folder, self.work / LOCK, RecordFolder(self.work))
        refuse_foreign(folder, last)
        self.lock()
        try:
            self._begin(key, resume, start_over)
        except BaseException:
            if (self.work / _KEY).is_file():
                self.release()
            else:
                self._leave()
            raise

    def _begin(self, key: dict[str, Any], resume: bool, start_over: str) -> None:
        """Resumes what the folder holds or starts over, once it is locked."""
        refuse_occupied(self.folder, self.work / _KEY, WORK)  # another process may have finished in the meantime
        self._names = self._read_names()
        if (self.work / _KEY).is_file():
            if resume or self.complete:
                refuse_other_key(self.folder, read_json(self.work / _KEY), key, start_over)
            else:
                self.discard()
        write_json(self.work / _KEY, key)
        self._remove_leftovers()

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
        """Yields a temporary path; on success it becomes the file `name` of the run in its folder, else it is removed.

        Raises:
            NestQuantError: the folder has such a file that is not of this run, or it cannot be written.
        """
        self.claim(name)
        with replacing(self.folder / name) as temporary:
            yield temporary

    def done(self, number: int, file: str) -> Any:
        """What `record` was given of part `number`; None where it is not finished, or its file is not as it was."""
        record = self.recorded(number)
        if record is None or record.key.get("file") != file:
            return None
        path = self.folder / file
        if not path.is_file() or sha256_file(path) != record.key.get("sha256"):
            logger.warning("%s is missing or was altered since it was written; it is made again", path)
            return None
        return record.value

    def recorded(self, number: int) -> Record | None:
        """The record of part `number` without a look at its file: name and hash of the file are its key."""
        return self._records.read(_step(number))

    def record(self, number: int, file: str, info: Any) -> None:
        """Notes that part `number` is finished; its file is in place.

        Args:
            number: number of the part.
            file: name of the file.
            info: JSON-ready; what `done` returns.
        """
        self.put(_step(number), {"file": file, "sha256": sha256_file(self.folder / file)}, info)

    def snapshot(self, name: str) -> Snapshot:
        """The state of a step at work, in the file `name`; it goes with the state of the run."""
        return Snapshot(self.work / name)

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
                NOTHING_WRITTEN,
                "correct its permissions, or choose another --output",
            ) from error
        self._names = []
        write_json(self.work / _NAMES, self._names)

    def give_up(self) -> None:
        """Removes the folder of a run that has nothing to resume from; what the run did not write stays."""
        # where nothing can be written, nothing can be removed either
        with contextlib.suppress(OSError, NestQuantError):
            self.discard()
            self._leave()
            self.folder.rmdir()

    def _leave(self) -> None:
        for name in (_KEY, _NAMES):
            (self.work / name).unlink(missing_ok=True)
        self.release(remove=True)
        with contextlib.suppress(OSError):
            self.work.rmdir()

    def _clear(self) -> None:
        """Removes everything of the state but key, names and lock."""
        for path in self.work.iterdir():
            if path.name not in (_KEY, _NAMES, LOCK):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _read_names(self) -> list[str]:
        path = self.work / _NAMES
        names = read_json(path) if path.is_file() else []
        if not isinstance(names, list) or not all(isinstance(name, str) and _is_plain(name) for name in names):
            raise NestQuantError(
                f"{path} is damaged", NOTHING_WRITTEN, f"remove {self.folder}, or choose another --output"
            )
        return list(names)

    def _remove_leftovers(self) -> None:
        """Removes what `replacing` could not remove, because the process was killed or lost the right to."""
        for name in self._names:
            for path in leftovers(self.folder / name):
                path.unlink()
        for path in self.work.glob(".*.part"):
            path.unlink()


def refuse_foreign(folder: Path, last: str) -> None:
    """Raises NestQuantError unless the folder is absent, empty or holds a run that no process is at work on.

    Args:
        folder: the output folder.
        last: name of the file that completes it.
    """
    refuse_unusable_folder(folder)
    work = folder / WORK
    refuse_held(work / LOCK, folder)
    if (folder / last).is_file() and work.is_dir() and {path.name for path in work.iterdir()} <= {_NAMES, LOCK}:
        shutil.rmtree(work)  # the run was complete but for this
    refuse_occupied(folder, work / _KEY, WORK)


def _step(number: int) -> str:
    return f"part-{number:05d}"


def _is_plain(name: str) -> bool:
    """Whether a name is that of a file in the folder itself: the state may come from anyone."""
    return name == Path(name).name and name not in ("", ".", "..", WORK)
