"""How far a comparison has come: one JSON file in its folder, written after every step, by which it goes on."""

import contextlib
from pathlib import Path
from typing import Any

from ..base.errors import NestQuantError
from ..storage.files import not_written, read_json, write_json
from ..storage.locks import Lock
from ..storage.output_checks import refuse_unusable_folder

FILE, LOCK = "progress.json", "progress.lock"
SECTIONS = ("runs", "scores", "tasks")


class State:
    """What is known by section and name; each record says by its key what it is of. `with` locks the folder.

    Args:
        folder: of the comparison: new, empty, or one that a comparison was begun in.

    Raises:
        NestQuantError: the folder holds something else.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / FILE
        refuse_unusable_folder(folder)
        foreign = folder.is_dir() and any(each.name != LOCK for each in folder.iterdir())
        if foreign and not self.path.is_file():
            raise NestQuantError(
                f"the output folder {folder} is not empty", "nothing was written", "choose another --output"
            )
        self._known: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
        if self.path.is_file():
            found = read_json(self.path)
            for section in SECTIONS:
                if isinstance(found, dict) and isinstance(found.get(section), dict):
                    self._known[section] = found[section]

    def __enter__(self) -> "State":
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise not_written(self.folder, error) from error
        self._lock = Lock(self.folder / LOCK, self.folder)
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release(remove=True)
        with contextlib.suppress(OSError):  # it holds what was compared, unless the command stopped before that
            self.folder.rmdir()

    def get(self, section: str, name: str, key: Any) -> Any:
        """What was put last under this name, where its key was the same; else None."""
        record = self._known[section].get(name)
        return record["value"] if isinstance(record, dict) and record.get("key") == key else None

    def put(self, section: str, name: str, key: Any, value: Any) -> None:
        """Keeps a JSON-ready value, on disk when this returns."""
        self._known[section][name] = {"key": key, "value": value}
        write_json(self.path, self._known)
