"""Files of the package import one another in one direction, imports inside functions counted."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "nestquant_cli"


def modules(root: Path) -> dict[str, Path]:
    """The files of a package by their module names."""
    found = {}
    for path in root.rglob("*.py"):
        parts = path.relative_to(root.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path) -> Iterator[tuple[str, str | None]]:
    """What a file imports anywhere in it: the module's name, and the name taken from it."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((module, alias.name) for alias in node.names)


def graph(root: Path) -> dict[str, set[str]]:
    """Which files of a package import which: those of the module itself, or of the package that a name is in."""
    known = modules(root)
    edges: dict[str, set[str]] = {}
    for name, path in known.items():
        targets = {
            f"{module}.{taken}" if f"{module}.{taken}" in known else module for module, taken in imports(name, path)
        }
        edges[name] = targets & known.keys()
    return edges


def circle(edges: dict[str, set[str]]) -> list[str]:
    """The modules of one circle in order, the first one again at the end; empty where there is none."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for target in sorted(edges[name]):
            if found := visit(target, [*path, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(edges) if (found := visit(name, []))), [])


def test_no_file_imports_itself_through_others() -> None:
    edges = graph(PACKAGE)
    assert sum(map(len, edges.values())) > 500, "few imports are found"
    assert circle(edges) == []


@pytest.mark.parametrize(
    "late",
    [
        "def f():\n    from ..a import one\n",
        "def f():\n    from .. import a\n",
        "def f():\n    import package.a\n",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from package.a import one\n",
    ],
)
def test_a_circle_through_a_late_import_is_found(late: str, tmp_path: Path) -> None:
    (tmp_path / "package" / "room").mkdir(parents=True)
    for name, text in {
        "__init__": "",
        "a": "from .room import b",
        "room/__init__": "",
        "room/b": "from .c import two",
        "room/c": late,
    }.items():
        (tmp_path / "package" / f"{name}.py").write_text(text, encoding="utf-8")
    assert circle(graph(tmp_path / "package")) == ["package.a", "package.room.b", "package.room.c", "package.a"]
