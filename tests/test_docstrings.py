"""What a docstring points to, "see `room.file.name`", is there."""

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nestquant_cli

HOME = Path(nestquant_cli.__file__).parent
ROOMS = {path.stem for path in HOME.iterdir()}
FILES = ("json", "py", "safetensors")  # endings of names of files, which are no pointers
POINTER = re.compile(r"`(?:nestquant_cli\.)?([a-z_]+(?:\.\w+)+)`")


def pointers() -> Iterator[tuple[str, str]]:
    """File and dotted name of every pointer that begins with a room of the package."""
    for path in sorted(HOME.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                for name in POINTER.findall(ast.get_docstring(node) or ""):
                    if name.partition(".")[0] in ROOMS and name.rpartition(".")[2] not in FILES:
                        yield str(path.relative_to(HOME)), name


def is_there(name: str) -> bool:
    module, rest = f"nestquant_cli.{name}", list[str]()
    while True:
        try:
            found: Any = importlib.import_module(module)
            break
        except ModuleNotFoundError:
            module, _, last = module.rpartition(".")
            rest.insert(0, last)
    for each in rest:
        if not hasattr(found, each) and each not in getattr(found, "__annotations__", {}):
            return False
        found = getattr(found, each, None)
    return True


def test_every_pointer_leads_somewhere() -> None:
    found = list(pointers())
    assert len(found) > 20
    assert [pointer for pointer in found if not is_there(pointer[1])] == []
    assert not is_there("calibration.text.no_such_name")
