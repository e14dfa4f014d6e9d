from pathlib import Path

import pytest

from nestquant_cli.errors import NestQuantError
from nestquant_cli.runs import WORK, RunState, refuse_full_disk


def test_the_folder_says_that_it_is_incomplete_until_it_is_closed(tmp_path: Path) -> None:
    state = RunState(tmp_path / "out", {"seed": 0}, "last")
    assert (state.folder / "INCOMPLETE").is_dir() and not state.complete
    (state.folder / "last").touch()
    again = RunState(tmp_path / "out", {"seed": 0}, "last", resume=False)  # killed right before it was closed
    assert again.complete
    again.close()
    assert [path.name for path in state.folder.iterdir()] == ["last"]
    with pytest.raises(NestQuantError, match="is not empty"):
        RunState(tmp_path / "out", {"seed": 0}, "last")


def test_giving_up_leaves_no_folder(tmp_path: Path) -> None:
    RunState(tmp_path / "out", {"seed": 0}, "last").give_up()
    assert not (tmp_path / "out").exists()


def test_a_disk_without_room_is_refused_before_the_start(tmp_path: Path) -> None:
    refuse_full_disk(tmp_path / "a" / "b", 1, "the checkpoint")
    with pytest.raises(NestQuantError, match=r"the checkpoint takes 1,000,000,000,000,000,000 bytes and .* free"):
        refuse_full_disk(tmp_path / "a" / "b", 10**18, "the checkpoint")
    assert not (tmp_path / "a").exists() and WORK == "INCOMPLETE"
