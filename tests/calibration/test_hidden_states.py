import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.calibration.hidden_states import HiddenStates
from tests.families import gaussian

ONE = 3 * 8 * 2  # bytes of a window


@pytest.mark.parametrize("budget", [0, ONE, 2 * ONE + 1, 1 << 20])
def test_what_is_kept_is_what_was_given(budget: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, make = [], tempfile.TemporaryFile

    def made(**options: Any) -> Any:
        files.append(make(**options))
        return files[-1]

    monkeypatch.setattr(tempfile, "TemporaryFile", made)
    hidden = HiddenStates(budget, tmp_path)
    windows = [gaussian(1, 3, 8, seed=seed).bfloat16() for seed in range(5)]
    for window in windows:
        hidden.append(window)
    assert all(map(torch.equal, hidden, windows)) and len(hidden) == 5
    assert sum(os.fstat(file.fileno()).st_size for file in files) == ONE * max(0, 5 - budget // ONE)
    for number in (4, 0, 2):
        windows[number] = -windows[number]
        hidden[number] = windows[number]
    assert all(map(torch.equal, hidden, windows))
    assert not list(tmp_path.iterdir())


def test_threads_read_side_by_side(tmp_path: Path) -> None:
    hidden = HiddenStates(0, tmp_path)
    for number in range(16):
        hidden.append(torch.full((1, 64, 512), float(number)))

    def read(turn: int) -> bool:
        return bool((hidden[turn % 16] == turn % 16).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(800)))


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    hidden = HiddenStates(0, tmp_path / "nowhere")
    with pytest.raises(NestQuantError, match=r"cannot be written .*No such file.*--memory-budget"):
        hidden.append(gaussian(1, 3, 8))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_full_disk_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: open("/dev/full", "r+b", buffering=0))  # noqa: SIM115
    with pytest.raises(NestQuantError, match="No space left"):
        HiddenStates(0, tmp_path).append(gaussian(1, 3, 8))
