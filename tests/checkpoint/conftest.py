"""Copies of the packed tiny model to damage."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nestquant_cli.checkpoint.manifest import MANIFEST, describe_files


@pytest.fixture
def copy(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))


@pytest.fixture
def rehash(copy: Path) -> Callable[[], None]:
    """Makes the manifest's sizes and hashes of files those of the copy."""

    def change() -> None:
        manifest = json.loads((copy / MANIFEST).read_text(encoding="utf-8"))
        manifest["files"] = describe_files(copy, list(manifest["files"]))
        (copy / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")

    return change


@pytest.fixture
def rewrite(copy: Path, rehash: Callable[[], None]) -> Callable[[str, Any], None]:
    """Changes a JSON file of the copy, by a function in place or else to a value, and brings the manifest in line."""

    def change(name: str, edit: Any) -> None:
        value = json.loads((copy / name).read_text(encoding="utf-8"))
        if callable(edit):
            edit(value)
        else:
            value = edit
        (copy / name).write_text(json.dumps(value), encoding="utf-8")
        if name != MANIFEST:
            rehash()

    return change
