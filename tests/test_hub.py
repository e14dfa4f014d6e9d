"""A model that is named by its Hub id, from the Hub's cache and without network, through the real commands."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.families import Outcome, in_process
from tests.sharing.test_push import FakeHub, card_of, hub

ROOT = Path(__file__).resolve().parents[1]
REVISION = "0" * 40
__all__ = ["hub"]  # a fixture


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    """A home of the Hub's client whose cache has org/tiny."""
    home = tmp_path_factory.mktemp("home")
    repository = home / "hub" / "models--org--tiny"
    shutil.copytree(tiny_model_folder, repository / "snapshots" / REVISION)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(REVISION)
    return home


def command(home: Path, *words: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HF_HOME": str(home)}
    environment.pop("HF_HUB_CACHE", None)
    line = [sys.executable, "-m", "nestquant_cli", *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, timeout=120, env=environment)


def test_a_cached_id_is_quantized_and_remembered(
    home: Path,
    tiny_text_file: Path,
    tmp_path: Path,
    hub: FakeHub,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = ["--dataset", tiny_text_file, "--samples", 2, "--seqlen", 64]
    done = command(home, "quantize", "org/tiny", "--bits", 4, *text, "--output", tmp_path / "packed")
    assert done.returncode == 0, done.stderr
    recipe = json.loads((tmp_path / "packed" / "config.json").read_text())["quantization_config"]["recipe"]
    assert recipe["base_model"] == "org/tiny"
    nestquant: Callable[..., Outcome] = in_process(capfd, monkeypatch)
    code, _, error = nestquant("push", tmp_path / "packed", "me/tiny", "--dry-run")
    assert code == 0, error
    assert card_of(tmp_path / "packed")[0]["base_model"] == "org/tiny"


def test_an_id_that_is_nowhere_is_one_line(home: Path, tiny_text_file: Path, tmp_path: Path) -> None:
    done = command(home, "quantize", "org/other", "--bits", 4, "--dataset", tiny_text_file, "--output", tmp_path / "p")
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(lines) == 1 and "org/other" in lines[0], done.stderr
    assert not (tmp_path / "p").exists()
