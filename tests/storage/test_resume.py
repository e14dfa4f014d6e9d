"""Output folders of long runs: what is removed, who may write, and what goes on after an interruption."""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.checkpoint.output import Output
from nestquant_cli.storage.output_checks import refuse_full_disk
from nestquant_cli.storage.resume import WORK, RunState
from tests.families import Outcome, error_line, in_process, pack


@pytest.fixture
def nestquant(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    return in_process(capfd, monkeypatch)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path, tiny_text_file: Path) -> Path:
    return pack(tiny_model_folder, tiny_text_file, tmp_path_factory.mktemp("runs") / "packed")


def test_the_folder_says_that_it_is_incomplete_until_it_is_closed(tmp_path: Path) -> None:
    state = RunState(tmp_path / "out", {"seed": 0}, "last")
    assert (state.folder / "INCOMPLETE").is_dir() and not state.complete
    state.claim("last")
    (state.folder / "last").touch()
    state.release()
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


@pytest.mark.parametrize(("lose", "message"), [(locked, "Permission denied"), (exchanged, "")])
def test_a_permission_that_is_lost_between_two_layers_is_one_line_and_the_same_command_goes_on(
    lose: Callable[[Path, pytest.MonkeyPatch], Callable[[], object]],
    message: str,
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
    line = error_line(stderr)
    assert re.search(f"{folder}/.* cannot be written", line) and message in line
    assert "what is finished is kept" in line and "repeat the command" in line
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
    names = ["model.safetensors", "n" * 250]
    for name in names:
        with pytest.raises(KeyboardInterrupt), state.writing(name) as temporary:
            raise KeyboardInterrupt
        temporary.with_name(temporary.name.replace(str(os.getpid()), str(os.getpid() + 1))).write_bytes(b"half")
    (state.work / f".run.json.{os.getpid() + 1}.part").write_bytes(b"half")
    mine = [".notes.part", f".notes.{os.getpid()}.part", ".model.safetensors.mine.part"]
    for name in mine:
        (state.folder / name).write_text("of the user")
    state.release()
    again = RunState(tmp_path / "out", {"seed": 0}, "last")
    assert sorted(path.name for path in again.folder.iterdir()) == sorted([*mine, WORK])
    assert sorted(path.name for path in again.work.iterdir()) == ["files.json", "lock", "run.json"]


NOTES = {"notes.txt": "mine", "README.md": "mine too", ".hidden.part": "also mine", "later/x.txt": "in a folder"}


def put_notes(folder: Path) -> None:
    for name, text in NOTES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)


def notes_in(folder: Path) -> dict[str, str]:
    return {name: (folder / name).read_text() for name in NOTES}


FILES = ("a.bin", "b.json", "tokenizer.json")


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("write"), st.sampled_from(FILES)),
            st.tuples(st.just("put"), st.sampled_from((*FILES, "notes.txt", "README.md", ".a.bin.part"))),
            st.tuples(st.sampled_from(("kill", "over", "give up")), st.just("")),
        ),
        max_size=12,
    )
)
def test_in_any_order_of_events_what_others_put_there_stays(steps: list[tuple[str, str]], tmp_path: Path) -> None:
    """The folder always holds what others put there, and of the run what it has written since it was started over."""
    folder = Path(tempfile.mkdtemp(dir=tmp_path)) / "out"
    state = RunState(folder, {}, "last")
    own: set[str] = set()
    foreign: set[str] = set()
    for step, name in steps:
        if step == "write" and name in foreign:
            with pytest.raises(NestQuantError, match="was put there by something else"), state.writing(name):
                pass
        elif step == "write":
            with state.writing(name) as temporary:
                temporary.write_text("of the run")
            own.add(name)
        elif step == "put" and name not in own:
            (folder / name).write_text("mine")
            foreign.add(name)
        elif step in ("kill", "over"):
            state.release()
            state = RunState(folder, {}, "last", resume=step == "kill")
            own = own if step == "kill" else set()
        elif step == "give up":
            state.give_up()
            assert folder.exists() == bool(foreign)
            if foreign:
                assert {path.name for path in folder.iterdir()} == foreign
                return
            state, own = RunState(folder, {}, "last"), set()
        assert {path.name for path in folder.iterdir()} == {*own, *foreign, WORK}
        assert all((folder / name).read_text() == "mine" for name in foreign)
        assert set(state.files) == own


@pytest.mark.parametrize("how", ["--no-resume", "an early error"])
def test_files_beside_an_unfinished_run_survive(
    how: str,
    nestquant: Callable[..., Outcome],
    tmp_path: Path,
    tiny_model_folder: Path,
    tiny_text_file: Path,
    undisturbed: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "packed"
    command = ["quantize", tiny_model_folder, "--dataset", tiny_text_file, "--samples", 4, "--seqlen", 64]
    command += ["--output", folder]

    def fail(*_: object, **__: object) -> None:
        raise NestQuantError("a", "b", "c")

    with monkeypatch.context() as patch:
        patch.setattr("nestquant_cli.pipeline.quantize.write_rest", fail)
        assert nestquant(*command)[0] == 2
    assert (folder / "model-00001-of-00003.safetensors").is_file()
    put_notes(folder)
    if how == "an early error":
        (folder / WORK / "part-00000.json").unlink()  # nothing is finished: the run is given up
        with monkeypatch.context() as patch:
            patch.setattr("nestquant_cli.pipeline.quantize.mixed_rates", fail)
            assert nestquant(*command)[0] == 2
        assert notes_in(folder) == NOTES and not list(folder.glob("*.safetensors")) and not (folder / WORK).exists()
        return
    code, _, stderr = nestquant(*command, "--no-resume")
    assert code == 0, stderr
    assert notes_in(folder) == NOTES
    written = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name not in NOTES}
    assert written == {path.name: path.read_bytes() for path in undisturbed.iterdir()}


def test_a_name_that_the_run_needs_and_others_took_is_left_alone(
    nestquant: Callable[..., Outcome], tmp_path: Path, tiny_model_folder: Path, tiny_text_file: Path
) -> None:
    folder = tmp_path / "packed"
    RunState(folder, {}, "config.json").release()
    (folder / WORK / "run.json").unlink()
    (folder / WORK / "lock").unlink()
    command = ["quantize", tiny_model_folder, "--dataset", tiny_text_file, "--samples", 4, "--seqlen", 64]
    real = Output.add_files

    def late(self: Output, save: Any) -> None:
        (folder / "tokenizer.json").write_text("mine")
        real(self, save)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Output, "add_files", late)
        code, _, stderr = nestquant(*command, "--output", folder)
    assert code == 2 and "tokenizer.json was put there by something else than this run" in error_line(stderr)
    assert (folder / "tokenizer.json").read_text() == "mine"
    (folder / "tokenizer.json").unlink()
    assert nestquant(*command, "--output", folder)[0] == 0


def test_names_in_a_state_that_lead_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    for name in ("../precious", str(tmp_path / "precious"), "..", "", 3):
        state = RunState(tmp_path / "out", {}, "last")
        (state.work / "files.json").write_text(json.dumps([name]))
        state.release()
        with pytest.raises(NestQuantError, match="is damaged"):
            RunState(tmp_path / "out", {}, "last", resume=False)
        (state.work / "files.json").unlink()
    assert (tmp_path / "precious").read_text() == "mine"


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b"x"), Path.unlink, lambda path: flip(path)])
def test_a_finished_part_whose_file_changed_is_told_and_made_again(
    damage: Callable[[Path], object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = RunState(tmp_path / "out", {}, "last")
    with state.writing("part") as temporary:
        temporary.write_bytes(b"content")
    state.record(0, "part", {"x": 1})
    assert state.done(0, "part") == {"x": 1} and not caplog.records
    damage(state.folder / "part")
    assert state.done(0, "part") is None
    assert [record.getMessage() for record in caplog.records] == [
        f"{state.folder / 'part'} is missing or was altered since it was written; it is made again"
    ]


def flip(path: Path) -> None:
    """Changes one bit, neither size nor name."""
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)


HOLDER = """
import sys, time
from pathlib import Path
from nestquant_cli.storage.resume import RunState
state = RunState(Path(sys.argv[1]), {}, "last")
print("held", flush=True)
time.sleep(600)
"""


def test_a_second_process_is_refused_until_the_first_one_is_killed(
    nestquant: Callable[..., Outcome], tmp_path: Path, tiny_model_folder: Path, tiny_text_file: Path
) -> None:
    folder = tmp_path / "out"
    command = [sys.executable, "-c", HOLDER, str(folder)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        text = ["--dataset", tiny_text_file, "--samples", 4, "--seqlen", 64]
        for words in (("quantize", tiny_model_folder, *text, "--no-resume"), ("calibrate", tiny_model_folder, *text)):
            code, _, stderr = nestquant(*words, "--output", folder)
            assert code == 2 and f"another command is writing {folder} (process {holder.pid} on " in error_line(stderr)
        with pytest.raises(NestQuantError, match="another command is writing"):
            RunState(folder, {}, "last", resume=False)
        assert (folder / WORK / "run.json").is_file()
    finally:
        holder.kill()
        holder.wait()
    RunState(folder, {}, "last").give_up()
    assert not folder.exists()


def dangling(tmp_path: Path) -> tuple[Path, str]:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    return tmp_path / "link", "is a link to"


def below(tmp_path: Path) -> tuple[Path, str]:
    (tmp_path / "file").touch()
    return tmp_path / "file" / "out", "file is a file"


OUTPUTS: dict[str, Callable[[Path], tuple[Path, str]]] = {
    "too long": lambda tmp_path: (tmp_path / ("x" * 300), "File name too long"),
    "too long in the middle": lambda tmp_path: (tmp_path / ("x" * 300) / "out", "File name too long"),
    "dangling": dangling,
    "below a file": below,
}


@pytest.mark.parametrize("output", OUTPUTS, ids=lambda name: name.replace(" ", "-"))
@pytest.mark.parametrize("command", ["quantize", "calibrate", "tune", "export", "compare", "report"])
def test_an_output_that_cannot_be_is_one_line_with_its_cause(
    output: str,
    command: str,
    nestquant: Callable[..., Outcome],
    tmp_path: Path,
    tiny_model_folder: Path,
    tiny_checkpoint: Path,
    tiny_text_file: Path,
) -> None:
    path, message = OUTPUTS[output](tmp_path)
    (tmp_path / "w4.yaml").write_text("weight_bits: 4\n")
    text = ["--dataset", tiny_text_file, "--seqlen", 64]
    words: dict[str, list[object]] = {
        "quantize": [tiny_model_folder, *text, "--samples", 2],
        "calibrate": [tiny_model_folder, *text, "--samples", 2],
        "tune": [tiny_checkpoint, "--model", tiny_model_folder, "--steps", 1, "--held-out", 1, *text],
        "export": [tiny_checkpoint],
        "compare": [tiny_model_folder, "--recipes", tmp_path / "w4.yaml", "--eval-dataset", tiny_text_file, *text],
        "report": [tiny_checkpoint, *text],
    }
    code, _, stderr = nestquant(command, *words[command], "--output", path)
    line = error_line(stderr)
    assert code == 2 and message in line and "nothing was written" in line, line
