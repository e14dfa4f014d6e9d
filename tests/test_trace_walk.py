"""The script that walks a weight, an activation and a key through the package, and the page that has the walks."""

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "nestquant_cli"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def script() -> Any:
    sys.path.insert(0, str(ROOT / "scripts"))  # as for a script that is run
    spec = importlib.util.spec_from_file_location("trace_walk", ROOT / "scripts" / "trace_walk.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    sys.path.remove(str(ROOT / "scripts"))
    return script


@pytest.fixture(scope="module")
def walks(script: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    walks: dict[str, Any] = script.trace(tmp_path_factory.mktemp("walk"))
    return walks


def test_a_walk_counts_moves_and_returns(script: Any) -> None:
    calls = [("a/x.py", "f"), ("b/y.py", "g"), ("a/x.py", "h"), ("a/z.py", "i"), ("b/y.py", "g"), ("c.py", "j")]
    walk = script.walk_of(sys.modules["walks"].Function(file, name, 1) for file, name in calls)
    assert walk.path == ["a/x.py", "b/y.py", "a/x.py", "a/z.py", "c.py"]  # g is called again, and not read again
    assert (walk.moves, walk.returns, walk.files) == (4, 1, ["a/x.py", "b/y.py", "a/z.py", "c.py"])
    assert walk.rooms == ["a", "b", "a", "c.py"]


def test_the_walks_begin_where_the_page_says(walks: dict[str, Any]) -> None:
    starts = {
        "weight": "quantization/layer.py",
        "run": "pipeline/quantize.py",
        "load": "integrations/transformers/quantizer.py",
        "activation": "modules/linear.py",
        "key": "modules/packed_layers.py",
    }
    for name, start in starts.items():
        assert start in walks[name].files[:2], (name, walks[name].files)


def test_every_file_of_a_walk_exists_and_its_main_ones_are_on_the_page(script: Any, walks: dict[str, Any]) -> None:
    for name, walk in walks.items():
        assert all((PACKAGE / file).is_file() for file in walk.files), name
        drawn = name in script.DRAWN
        folders = {file.rpartition("/")[0] for file in walk.files}
        assert all(f"`{folder.split('/')[0]}/" in PAGE for folder in folders if folder), (name, folders)
        if drawn:
            assert f"figures/walk-{name}.png)" in PAGE and (ROOT / "docs" / "figures" / f"walk-{name}.png").is_file()
            first = [file for file in walk.files if not file.startswith(("base/", "kernels/"))][:3]
            missing = [file for file in first if f"`{file}`" not in PAGE]
            assert not missing, (name, missing)


def test_the_functions_of_the_page_are_in_the_files_that_it_names(script: Any) -> None:
    rows = re.findall(r"^\| \d+ \| (`[^|]*`) \| (`[^|]*`) \|", PAGE, re.M)
    assert len(rows) > 15
    for files, functions in rows:
        sources = [(PACKAGE / file).read_text(encoding="utf-8") for file in re.findall(r"`([^`]*)`", files)]
        for function in re.findall(r"`([^`]*)`", functions):
            last = function.rpartition(".")[2]
            assert any(re.search(rf"\b(?:def|class) {last}\b", source) for source in sources), (files, function)


def test_a_walk_is_drawn(script: Any, walks: dict[str, Any], tmp_path: Path) -> None:
    script.draw(tmp_path / "walk.png", walks["activation"])
    assert (tmp_path / "walk.png").read_bytes().startswith(b"\x89PNG")
