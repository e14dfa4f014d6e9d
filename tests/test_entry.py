"""The first second of the command, and standard streams that are closed: real processes."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from nestquant_cli.base.process import INTERRUPTION, repair_streams

ROOT = Path(__file__).resolve().parents[1]
INTERRUPTED_AT_IMPORT = """
import os, signal, sys
from importlib.abc import MetaPathFinder
class Interrupting(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == sys.argv[1]:
            sys.meta_path.remove(self)
            print("interrupted", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGINT)
{before}
from nestquant_cli.entry import main
sys.meta_path.insert(0, Interrupting())
main(sys.argv[2:])
"""


def interrupted(module: str, words: Sequence[object], before: str = "") -> tuple[int, str]:
    """Exit code and standard error of a command that gets SIGINT where it imports a module."""
    program = INTERRUPTED_AT_IMPORT.format(before=before)
    command = [sys.executable, "-c", program, module, *map(str, words)]
    # a test that runs in the background of a shell would hand on that SIGINT is ignored
    done = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    first, _, rest = done.stderr.partition("\n")
    assert first == "interrupted", done.stderr
    return done.returncode, rest


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("nestquant_cli.cli.main", ["--help"]),
        ("typer", ["--help"]),
        ("rich.console", ["--version"]),
        ("nestquant_cli.pipeline.recipe", ["quantize", "nothing"]),
        ("torch", ["inspect", "nothing"]),
    ],
)
def test_an_interrupt_during_an_import_is_one_line_and_130(module: str, words: list[str]) -> None:
    assert interrupted(module, words) == (130, f"error: {INTERRUPTION}\n")


def test_an_interrupt_inside_a_lazy_import_of_transformers_is_no_other_error(
    tiny_model_folder: Path, tiny_text_file: Path, tmp_path: Path
) -> None:
    """The library turns whatever happens there into an error of its own, about a missing module."""
    words = ["--quiet", "quantize", tiny_model_folder, "--dataset", tiny_text_file, "--output", tmp_path / "out"]
    assert interrupted("transformers.modeling_utils", words) == (130, f"error: {INTERRUPTION}\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", [["--log-format=json"], ["--log-format", "json"]])
def test_the_line_is_an_object_where_the_log_is_json(option: list[str]) -> None:
    code, stderr = interrupted("typer", ["--version", *option])
    line = json.loads(stderr)
    assert code == 130 and (line["level"], line["message"]) == ("error", INTERRUPTION)


def test_an_interrupt_that_is_ignored_stays_so() -> None:
    assert interrupted("typer", ["--version"], "signal.signal(signal.SIGINT, signal.SIG_IGN)") == (0, "")


def shell(streams: str, *words: object) -> subprocess.CompletedProcess[str]:
    """A command as a shell starts it, with redirections such as ">&-"."""
    command = ["sh", "-c", f'exec "$@" {streams}', "sh", sys.executable, "-m", "nestquant_cli", *map(str, words)]
    return subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)


@pytest.mark.parametrize("streams", [">&-", "2>&-", ">&- 2>&- <&-"])
def test_closed_streams_change_no_exit_code(streams: str) -> None:
    done = shell(streams, "--version")
    assert done.returncode == 0 and done.stderr == "" and done.stdout == ("" if "1" in streams else done.stdout)
    failed = shell(streams, "inspect", "nothing")
    assert failed.returncode == 2 and "Traceback" not in failed.stderr and "internal" not in failed.stderr


def test_commands_work_without_standard_output(tiny_checkpoint: Path, tmp_path: Path) -> None:
    done = shell(">&-", "--quiet", "inspect", tiny_checkpoint, "--output", tmp_path / "found.json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads((tmp_path / "found.json").read_text())["file_bytes"] > 0


def test_a_closed_standard_input_is_an_empty_one(talking_packed: Path) -> None:
    done = shell("<&-", "--quiet", "chat", talking_packed, "--max-new-tokens", "3")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = shell("<&-", "--quiet", "generate", talking_packed, "--max-new-tokens", "3")
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "prompt" in done.stderr
    assert len(done.stderr.splitlines()) == 1 and "internal" not in done.stderr


def test_no_file_takes_the_place_of_a_closed_stream(tmp_path: Path) -> None:
    program = (
        "import sys; from nestquant_cli.base.process import repair_streams; repair_streams(); file = open('data', 'w');"
        "print('printed'); sys.stdin.read(); file.write(str(file.fileno() > 2)); file.close()"
    )
    command = ["sh", "-c", 'exec "$@" <&- >&-', "sh", sys.executable, "-c", program]
    subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, cwd=tmp_path, check=True)
    assert (tmp_path / "data").read_text() == "True"


def test_streams_that_are_there_stay() -> None:
    before = sys.stdin, sys.stdout, sys.stderr
    repair_streams()
    assert (sys.stdin, sys.stdout, sys.stderr) == before
