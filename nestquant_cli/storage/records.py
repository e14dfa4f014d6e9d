"""What is known of the steps of a run, on disk whole or not at all.

A finished step has a `Record`: the key of what it was made from, and a value. Whoever asks for it says the key again,
and a record with another key counts as absent. `RecordFolder` has one JSON file for each step, `RecordFile` one for
all of them. A step that is still at work has a `Snapshot`, from which it resumes.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from .files import read_json, replacing, write_json

_VALUE = "info"  # the field of a record's file that is not of its key

logger = logging.getLogger("nestquant")


@dataclass(frozen=True)
class Record:
    """A finished step.

    Attributes:
        key: JSON-ready; what the step was made from.
        value: JSON-ready; what is remembered of it.
    """

    key: Any
    value: Any


class Records(Protocol):
    """Records by the names of their steps."""

    def read(self, step: str) -> Record | None:
        """The record of a step; None where there is none."""
        ...

    def write(self, step: str, record: Record) -> None:
        """Keeps a record; it is on disk when this returns."""
        ...


class RecordFolder:
    """One JSON file a step: the fields of the key, which is a mapping, and the value as `info`.

    Args:
        folder: folder of the files, which exists.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, step: str) -> Record | None:
        path = self._path(step)
        found = read_json(path) if path.is_file() else None
        if not isinstance(found, dict):
            return None
        return Record({name: field for name, field in found.items() if name != _VALUE}, found.get(_VALUE))

    def write(self, step: str, record: Record) -> None:
        write_json(self._path(step), {**record.key, _VALUE: record.value})

    def _path(self, step: str) -> Path:
        return self.folder / f"{step}.json"


class RecordFile:
    """One JSON file for all steps, in sections; the name of a step is `SECTION/NAME`.

    Args:
        path: the file, which need not exist.
        sections: names of the sections; what else the file has is dropped.
    """

    def __init__(self, path: Path, sections: Sequence[str]) -> None:
        self.path = path
        found = read_json(path) if path.is_file() else None
        found = found if isinstance(found, dict) else {}
        self._sections: dict[str, dict[str, Any]] = {
            section: found[section] if isinstance(found.get(section), dict) else {} for section in sections
        }

    def read(self, step: str) -> Record | None:
        section, _, name = step.partition("/")
        found = self._sections[section].get(name)
        return Record(found.get("key"), found.get("value")) if isinstance(found, dict) else None

    def write(self, step: str, record: Record) -> None:
        section, _, name = step.partition("/")
        self._sections[section][name] = {"key": record.key, "value": record.value}
        write_json(self.path, self._sections)


class Snapshot:
    """Tensors, numbers and texts of a step at work, by name; each `save` takes the place of the one before.

    Args:
        path: the file, which need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def save(self, state: dict[str, Any]) -> None:
        """Writes the state, atomically.

        Raises:
            NestQuantError: the disk is full or the folder cannot be written.
        """
        import torch

        with replacing(self.path) as temporary, temporary.open("wb") as file:  # of which a full disk is an OSError
            torch.save(state, file)

    def load(self) -> dict[str, Any] | None:
        """The state on the CPU; None where there is none, or, with a warning, where the file holds something else.

        Only tensors and plain values are read: a file that would run code on the way is not a state.
        """
        import torch

        try:
            state = torch.load(self.path, weights_only=True)
        except FileNotFoundError:
            return None
        except Exception:  # torch has no one error for a file that is damaged or of another kind
            state = None
        if not isinstance(state, dict):
            logger.warning("%s cannot be read as the state of a step at work; the step begins anew", self.path)
            return None
        return state
