"""Files that cannot be written are refused before the work that they are for."""

from collections.abc import Callable
from pathlib import Path

import pytest

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.storage.output_checks import refuse_unusable_file
from tests.families import Outcome, error_line, in_process

FILES: dict[str, Callable[[Path], tuple[Path, str]]] = {
    "a folder": lambda folder: (folder, "is a folder"),
    "a long name": lambda folder: (folder / ("x" * 300), "File name too long"),
    "below a file": lambda folder: (folder / "file" / "out.json", "is a file"),
    "in a link to nothing": lambda folder: (folder / "link" / "out.json", "is a link to"),
}
COMMANDS: dict[str, list[object]] = {
    "eval-ppl": ["nowhere"],
    "eval-tasks": ["nowhere", "--tasks", "piqa"],
    "inspect": ["nowhere"],
    "verify": ["nowhere"],
    "generate": ["nowhere", "text"],
}


@pytest.fixture
def nestquant(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    return in_process(capfd, monkeypatch)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    return tmp_path


@pytest.mark.parametrize("case", FILES)
def test_what_cannot_be_a_file_is_refused_with_its_cause(folder: Path, case: str) -> None:
    path, message = FILES[case](folder)
    with pytest.raises(NestQuantError, match=message):
        refuse_unusable_file(path)


@pytest.mark.parametrize("name", ["new.json", "file", "new/folder/out.json", "link"])
def test_what_can_be_written_is_taken_and_nothing_is_made(folder: Path, name: str) -> None:
    before = sorted(folder.rglob("*"))
    refuse_unusable_file(folder / name)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("command", "option"),
    [*((command, "--output") for command in COMMANDS), ("eval-ppl", "--junit"), ("eval-tasks", "--junit")],
)
def test_a_command_says_so_before_it_looks_at_the_model(
    nestquant: Callable[..., Outcome], folder: Path, command: str, option: str
) -> None:
    code, output, error = nestquant(command, *COMMANDS[command], option, folder)
    assert (code, output) == (2, "") and f"{folder} is a folder; nothing was written" in error_line(error)
