import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nestquant_cli.checkpoint.output import Output
from nestquant_cli.errors import NestQuantError
from nestquant_cli.runs import WORK, RunState, refuse_full_disk
from tests.families import Outcome, in_process, pack, tell


@pytest.fixture
def nestquant(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    return in_process(capfd, monkeypatch)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path, tiny_text_file: Path) -> Path:
    return pack(tiny_model_folder, tiny_text_file, tmp_path_factory.mktemp("runs") / "packed")


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


def locked(folder: Path, patch: pytest.MonkeyPatch) -> Callable[[], object]:
    """Takes the right to write away, from root too; returns what gives it back."""
    mode = folder.stat().st_mode

    def denied(path: Any, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    folder.chmod(0o555)
    patch.setattr("os.replace", denied)
    patch.setattr("os.unlink", denied)
    return lambda: folder.chmod(mode)


def exchanged(folder: Path, _: pytest.MonkeyPatch) -> Callable[[], object]:
    """Puts a file where the folder was, as a disk that is gone leaves its mount point; no patch is needed."""
    aside = folder.with_name("aside")
    folder.rename(aside)
    folder.touch()

    def back() -> None:
        folder.unlink()
        aside.rename(folder)

    return back


@pytest.mark.parametrize(("lose", "told"), [(locked, "Permission denied"), (exchanged, "")])
def test_a_permission_that_is_lost_between_two_layers_is_one_line_and_the_same_command_goes_on(
    lose: Callable[[Path, pytest.MonkeyPatch], Callable[[], object]],
    told: str,
    undisturbed: Path,
    nestquant: Callable[..., Outcome],
    tmp_path: Path,
    tiny_model_folder: Path,
    tiny_text_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, write, restore = tmp_path / "packed", Output.write, []
    command = ["quantize", tiny_model_folder, "--dataset", tiny_text_file, "--samples", 4, "--seqlen", 64]
    command += ["--output", folder]
    with monkeypatch.context() as patch:

        def losing(self: Output, number: int, *rest: Any) -> None:
            write(self, number, *rest)
            if number == 0:
                restore.append(lose(folder, patch))

        patch.setattr(Output, "write", losing)
        code, _, stderr = nestquant(*command)
    assert code == 2 and len(restore) == 1
    line = tell(stderr)
    assert "00002-of-00003.safetensors cannot be written" in line and told in line
    assert "what is finished is kept" in line and "mend its permissions and repeat the command" in line
    restore[0]()
    kept = (folder / "model-00001-of-00003.safetensors").stat().st_mtime_ns
    assert not (folder / "config.json").exists()
    assert nestquant(*command)[0] == 0
    assert (folder / "model-00001-of-00003.safetensors").stat().st_mtime_ns == kept
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        path.name: path.read_bytes() for path in undisturbed.iterdir()
    }


def test_what_a_killed_process_was_writing_is_removed(tmp_path: Path) -> None:
    state = RunState(tmp_path / "out", {"seed": 0}, "last")
    for place in (state.folder, state.work):
        (place / f".model.safetensors.{os.getpid() + 1}.part").write_bytes(b"half")
    again = RunState(tmp_path / "out", {"seed": 0}, "last")
    assert [path.name for path in again.folder.iterdir()] == [WORK]
    assert [path.name for path in again.work.iterdir()] == ["run.json"]
