"""Where compiled kernels are kept, and that every place may fail."""

import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest

from nestquant_cli.kernels.cpu import jit

ROOT = Path(__file__).resolve().parents[3]
SOURCE = """
from nestquant_cli.kernels.cpu.jit import njit

@njit(nogil=True)
def plus_one(x):
    return x + 1
"""


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    for remembered in (jit._own_folder, jit._warn_once):
        remembered.cache_clear()
    yield
    for remembered in (jit._own_folder, jit._warn_once):
        remembered.cache_clear()


@pytest.fixture
def kernel(tmp_path: Path) -> Callable[[], Any]:
    """A small kernel in a module of its own, new each time."""
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "module.py").write_text(SOURCE)

    def load() -> Any:
        spec = importlib.util.spec_from_file_location("module", folder / "module.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.plus_one

    return load


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No place beside the source and none at home, not even for root; the temporary directory is returned."""
    (tmp_path / "package" / "__pycache__").touch()  # a file where the folder would be
    monkeypatch.setenv("HOME", os.devnull)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


def kept(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.nbc"))


def test_beside_the_source_where_that_can_be_written(kernel: Callable[[], Any], tmp_path: Path) -> None:
    assert kernel()(1) == 2
    assert len(kept(tmp_path / "package" / "__pycache__")) == 1
    again = kernel()
    assert again(1) == 2 and sum(again.stats.cache_hits.values()) == 1


def test_a_changed_module_beside_compiles_all_again(kernel: Callable[[], Any], tmp_path: Path) -> None:
    """What a function calls may be in any of them, and is compiled into it."""
    beside = tmp_path / "package" / "other.py"
    assert kernel()(1) == 2
    beside.write_text("ONE = 1")
    jit._fingerprint.cache_clear()
    again = kernel()
    assert again(1) == 2 and not again.stats.cache_hits
    unchanged = kernel()
    assert unchanged(1) == 2 and sum(unchanged.stats.cache_hits.values()) == 1


def test_in_the_users_cache_next(
    kernel: Callable[[], Any], nowhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert kernel()(1) == 2
    assert len(kept(tmp_path / "home")) == 1 and not kept(nowhere)


def test_under_the_temporary_directory_where_there_is_no_home(
    kernel: Callable[[], Any], nowhere: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "nestquant")
    assert kernel()(1) == 2
    (folder,) = nowhere.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700 and len(kept(folder)) == 1
    again = kernel()
    assert again(1) == 2 and sum(again.stats.cache_hits.values()) == 1
    assert len(caplog.messages) == 1 and str(folder) in caplog.messages[0]
    assert numba.config.CACHE_DIR == ""


def open_to_others(place: Path) -> None:
    place.mkdir()
    place.chmod(0o777)


def a_link(place: Path) -> None:
    (place.parent / "elsewhere").mkdir()
    place.symlink_to(place.parent / "elsewhere")


@pytest.mark.parametrize("taken", [open_to_others, a_link, Path.touch])
def test_a_folder_that_others_may_write_is_not_trusted(
    taken: Callable[[Path], object], kernel: Callable[[], Any], nowhere: Path, caplog: pytest.LogCaptureFixture
) -> None:
    taken(nowhere / f"nestquant-numba-{os.getuid()}")
    assert kernel()(1) == 2 and kernel()(2.5) == 3.5
    assert not kept(nowhere)
    assert len(caplog.messages) == 1 and "NUMBA_CACHE_DIR" in caplog.messages[0]


def test_no_temporary_directory_is_no_cache(
    kernel: Callable[[], Any], nowhere: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    assert kernel()(1) == 2
    assert len(caplog.messages) == 1 and "NUMBA_CACHE_DIR" in caplog.messages[0]


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b""), lambda path: path.write_bytes(b"x"), a_folder])
@pytest.mark.parametrize("form", ["*.nbi", "*.nbc"])
def test_a_kept_file_that_cannot_be_used_is_passed_over(
    damage: Callable[[Path], object],
    form: str,
    kernel: Callable[[], Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A folder stands for the file of another user, which root could read."""
    assert kernel()(1) == 2
    (path,) = (tmp_path / "package" / "__pycache__").glob(form)
    damage(path)
    assert kernel()(1) == 2
    assert all("NUMBA_CACHE_DIR" in message for message in caplog.messages) and len(caplog.messages) <= 1


def test_the_package_runs_from_a_folder_that_cannot_be_written_without_a_home(tmp_path: Path) -> None:
    copy = tmp_path / "site" / "nestquant_cli"
    shutil.copytree(ROOT / "nestquant_cli", copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "kernels" / "cpu" / "__pycache__").touch()
    program = "import numpy as np; from nestquant_cli.kernels.cpu import e8 as c; print(c.__file__, c.odd(c.ONE))"
    environment = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    environment |= {"PYTHONPATH": str(copy.parent), "TMPDIR": str(tmp_path), "HOME": os.devnull}
    command = [sys.executable, "-B", "-c", program]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{copy / 'kernels' / 'cpu' / 'e8.py'} 1.0\n", "")
    assert len(kept(tmp_path / f"nestquant-numba-{os.getuid()}")) == 1


def test_numbers_are_those_of_numba(kernel: Callable[[], Any]) -> None:
    values = np.arange(5.0)
    assert np.array_equal(kernel()(values), values + 1)
