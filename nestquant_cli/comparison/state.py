"""How far a comparison has come: one JSON file in its folder, written after every step, by which it goes on."""

from pathlib import Path
from typing import Any

from ..errors import NestQuantError
from ..files import read_json, write_json

FILE = "progress.json"
SECTIONS = ("runs", "scores", "tasks")


class State:
    """What is known by section and name; each record says by its key what it is of.

    Args:
        folder: of the comparison: new, empty, or one that a comparison was begun in.

    Raises:
        NestQuantError: the folder holds something else.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        if folder.is_dir() and any(folder.iterdir()) and not self.path.is_file():
            raise NestQuantError(
                f"the output folder {folder} is not empty", "nothing was written", "choose another --output"
            )
        self._known: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
        if self.path.is_file():
            found = read_json(self.path)
            for section in SECTIONS:
                if isinstance(found, dict) and isinstance(found.get(section), dict):
                    self._known[section] = found[section]

    def get(self, section: str, name: str, key: Any) -> Any:
        """What was put last under this name, where its key was the same; else None."""
        record = self._known[section].get(name)
        return record["value"] if isinstance(record, dict) and record.get("key") == key else None

    def put(self, section: str, name: str, key: Any, value: Any) -> None:
        """Keeps a JSON-ready value, on disk when this returns."""
        self._known[section][name] = {"key": key, "value": value}
        write_json(self.path, self._known)
