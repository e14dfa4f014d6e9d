"""The script that draws the pictures of the documentation."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

from nestquant_cli.e8.rates import BEST

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("make_figures", ROOT / "scripts" / "make_figures.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


@pytest.mark.slow
def test_every_picture_is_drawn_and_used(
    script: Any, tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "DPI", 30)
    monkeypatch.setattr(script, "TOKENS", 64)
    script.main(["--model", str(tiny_model_folder), "--output", str(tmp_path)])
    drawn = sorted(path.name for path in tmp_path.iterdir())
    figures = (path.name for path in (ROOT / "docs" / "figures").iterdir())
    assert drawn == sorted(name for name in figures if not name.startswith("walk-"))  # those of scripts/trace_walk.py
    text = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs").glob("*.md"))
    assert all(f"figures/{name})" in text for name in drawn)
    assert 0.0039 < BEST[32][3] < script.uniform_error(4) < 0.012


def test_every_recipe_that_was_compared_is_in_the_picture(script: Any) -> None:
    page = (ROOT / "docs" / "quality.md").read_text(encoding="utf-8")
    command = re.search(r"nestquant compare MODEL --recipes (\S+)", page)
    assert command is not None
    recipes = [name.removesuffix(".yaml") for name in command[1].split(",")]
    assert sorted(name for name, _, _ in script.measured()) == sorted(["reference", *recipes])
