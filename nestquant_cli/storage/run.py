"""A run: an output folder that one command at a time fills step by step, so that the same command resumes.

    with SomeRun(folder, …) as run:
        value = run.get("layer-3", key)
        if value is None:
            value = …
            run.put("layer-3", key, value)

`storage.resume.RunState` is a run that ends in a complete folder: quantizing, calibrating, tuning and exporting.
`comparison.saved_scores.ComparisonState` is one whose folder is added to. They differ in where lock and records are,
and in what may be deleted.
"""

from pathlib import Path
from typing import Any, TypeVar

from ..base.errors import NestQuantError
from .files import not_written
from .locks import Lock
from .records import Record, Records

NOTHING_WRITTEN = "nothing was written"
_Run = TypeVar("_Run", bound="Run")


class Run:
    """An output folder with a lock and the records of its steps. `with` holds the lock.

    Args:
        folder: output folder.
        lock_file: file of the lock; its folder is made when the lock is taken.
        records: records of the finished steps.
    """

    def __init__(self, folder: Path, lock_file: Path, records: Records) -> None:
        self.folder, self._lock_file, self._records = folder, lock_file, records
        self._lock: Lock | None = None

    def __enter__(self: _Run) -> _Run:
        if self._lock is None:
            self.lock()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __getstate__(self) -> dict[str, Any]:
        """For the other processes of a team: the lock stays with this one."""
        return {**self.__dict__, "_lock": None}

    def lock(self) -> None:
        """Takes the lock.

        Raises:
            NestQuantError: another process has it, or the folder cannot be made.
        """
        try:
            self._lock_file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise not_written(self._lock_file.parent, error) from error
        self._lock = Lock(self._lock_file, self.folder)

    def release(self, remove: bool = False) -> None:
        """Lets another process resume the run; may be called twice.

        Args:
            remove: delete the lock's file, too, while it is still held.
        """
        if self._lock is not None:
            self._lock.release(remove)

    def get(self, step: str, key: Any) -> Any:
        """The value of a finished step that was made from `key`; None where there is none."""
        record = self._records.read(step)
        return record.value if record is not None and record.key == key else None

    def put(self, step: str, key: Any, value: Any) -> None:
        """Notes that a step is finished.

        Args:
            step: name of the step.
            key: JSON-ready; what it was made from.
            value: JSON-ready; what `get` returns.
        """
        self._records.write(step, Record(key, value))


def refuse_occupied(folder: Path, state: Path, lock: str) -> None:
    """Raises NestQuantError where a folder has files and none of them is the state of a run.

    Args:
        folder: output folder; it need not exist.
        state: the file that a run has there from its start on.
        lock: name of the lock's file or folder, which may be there before it.
    """
    if folder.is_dir() and not state.is_file() and any(path.name != lock for path in folder.iterdir()):
        raise NestQuantError(
            f"the output folder {folder} is not empty", NOTHING_WRITTEN, "remove it or choose another --output"
        )


def refuse_other_key(folder: Path, old: Any, new: dict[str, Any], start_over: str) -> None:
    """Raises NestQuantError where an unfinished run has another key, naming the first setting that differs.

    Args:
        folder: output folder.
        old, new: key of the run there, and of the one that would resume it.
        start_over: what the user does to start over, for the message.
    """
    before, after = _flat(old), _flat(new)
    differing = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
    if differing:
        name = differing[0]
        raise NestQuantError(
            f"{folder} holds an unfinished run with {name} {before.get(name)} instead of {after.get(name)}",
            NOTHING_WRITTEN,
            f"repeat that command, {start_over}, or choose another --output",
        )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of nested mappings by dotted names."""
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        key: leaf for name, item in value.items() for key, leaf in _flat(item, f"{prefix}.{name}".lstrip(".")).items()
    }
