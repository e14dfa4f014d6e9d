"""Imports run the way docs/architecture.md says: from the folders of a line to those of the same line or below."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "nestquant_cli"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
# Files that import from a line above: what of config.json and of a model card is transformers', and a codec's digits.
UPWARDS = {
    ("checkpoint/auto.py", "integrations"),
    ("checkpoint/verify.py", "integrations"),
    ("pipeline/finish.py", "integrations"),
    ("kernels/reference/lattice_decode.py", "codecs"),
}


def floors() -> dict[str, int]:
    """The line of each folder on the page, counted from the top."""
    block = re.search(r"Imports have no circles.*?\n\n((?:    [^\n]*\n)+)", PAGE, re.S)
    assert block is not None
    return {room: number for number, line in enumerate(block[1].splitlines()) for room in line.strip().split(", ")}


def imports() -> Iterator[tuple[str, str]]:
    """Each file below the package, and a folder that it imports from, at its top or later."""
    for path in PACKAGE.rglob("*.py"):
        package = path.relative_to(PACKAGE).parent.parts
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level and package:
                module = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
                names = [alias.name for alias in node.names] if module == [""] else [module[0]]
                yield from ((path.relative_to(PACKAGE).as_posix(), name) for name in names)


def test_every_folder_is_on_a_line_and_on_the_map() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    assert folders == set(floors())
    assert all(f"`{folder}/" in PAGE for folder in folders)


def test_imports_run_downwards() -> None:
    lines = floors()
    upwards = {(file, room) for file, room in imports() if room in lines and lines[room] < lines[file.split("/")[0]]}
    assert upwards <= UPWARDS, upwards - UPWARDS
    assert len(set(imports())) > 300, "few imports are found"
