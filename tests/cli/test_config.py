"""`--config` of every command: settings of a file, which the command line wins over."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from nestquant_cli.cli import main
from nestquant_cli.storage.files import read_json
from tests.families import Outcome, error_line, in_process


@pytest.fixture
def nestquant(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    return in_process(capfd, monkeypatch)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "settings.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def commands() -> list[str]:
    return [str(command.name) for command in main.app.registered_commands]


@pytest.mark.parametrize("command", commands())
def test_every_command_refuses_unknown_settings(
    nestquant: Callable[..., Outcome], write: Callable[[str], Path], command: str
) -> None:
    code, _, error = nestquant(command, "--config", write("colour: red\n"))
    assert code == 2 and "unknown setting 'colour'" in error_line(error)


def test_settings_are_printed_and_saved_and_options_win(
    nestquant: Callable[..., Outcome],
    write: Callable[[str], Path],
    caplog: pytest.LogCaptureFixture,
    tiny_model_folder: Path,
    tiny_text_file: Path,
    tmp_path: Path,
) -> None:
    caplog.set_level(logging.INFO, "nestquant")
    output = tmp_path / "out.json"
    config = write(f"model: {tiny_model_folder}\ndataset: {tiny_text_file}\nmax-windows: 3\nseqlen: 64\nbos: each\n")
    code, printed, error = nestquant("eval-ppl", "--config", config, "--max-windows", 2, "--output", output)
    assert code == 0, error
    found = read_json(output)
    assert found["windows"] == 2 and found["protocol"]["bos"] == "each" and found["protocol"]["seqlen"] == 64
    expected = {"model": str(tiny_model_folder), "max_windows": 2, "seqlen": 64, "bos": "each", "fail_above": None}
    assert found["settings"].items() >= expected.items() and "config" not in found["settings"]
    first = caplog.messages[0]
    assert first.startswith("scoring ") and "the first 2 windows of 64 tokens" in first
    assert caplog.messages[1].startswith("settings: ") and "max_windows 2" in caplog.messages[1]
    assert printed.splitlines()[-2:] == [
        f"result: {output}",
        f"next: nestquant quantize {tiny_model_folder} --bits 4",
    ]


def test_a_list_is_one_for_a_repeatable_option_and_else_goes_by_comma(
    nestquant: Callable[..., Outcome], write: Callable[[str], Path], tiny_model_folder: Path
) -> None:
    config = write("tasks: [sample_piqa, other]\nfail-below: [sample_piqa]\n")
    code, _, error = nestquant("eval-tasks", tiny_model_folder, "--config", config)
    assert code == 2 and "--fail-below sample_piqa cannot be read" in error_line(error)
    code, _, error = nestquant("eval-tasks", tiny_model_folder, "--config", config, "--fail-below", "other=1")
    assert code == 2 and "there is no task 'sample_piqa'" in error_line(error)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seqlen: many\n", "--seqlen"),
        ("seqlen: 2.5\n", "--seqlen"),
        ("seqlen: {a: 1}\n", "a seqlen that is not a number, text or list"),
        ("bos: never\n", "--bos"),
        ("- seqlen\n", "is not a YAML mapping"),
        ("seqlen: [\n", "cannot be read as YAML"),
    ],
)
def test_damaged_files_are_one_line(
    nestquant: Callable[..., Outcome], write: Callable[[str], Path], text: str, message: str
) -> None:
    code, _, error = nestquant("eval-ppl", "demo", "--config", write(text))
    assert code == 2 and message in error_line(error)
    code, _, error = nestquant("eval-ppl", "demo", "--config", "absent.yaml")
    assert code == 2 and "absent.yaml cannot be read" in error_line(error)


def test_a_recipe_may_hold_options_of_quantize(
    nestquant: Callable[..., Outcome],
    write: Callable[[str], Path],
    caplog: pytest.LogCaptureFixture,
    tiny_model_folder: Path,
    tiny_text_file: Path,
    tmp_path: Path,
) -> None:
    caplog.set_level(logging.INFO, "nestquant")
    recipe = f"bits: 3\nsamples: 3\nseqlen: 48\ndataset: {tiny_text_file}\n"
    config = write(f"{recipe}model: {tiny_model_folder}\noutput: {tmp_path / 'out'}\nplan: true\n")
    code, printed, error = nestquant("quantize", "--config", config)
    assert code == 0 and "quantized weights" in printed, error
    assert f"quantize {tiny_model_folder} to w3a3kv3 in {tmp_path / 'out'}" in caplog.messages[0]
    assert "weight_bits 3" in caplog.messages[1] and "samples 3" in caplog.messages[1]
    code, _, error = nestquant("quantize", "--config", write("bits: 4\nweight-bit: 3\nmodel: demo\n"))
    assert code == 2 and "unknown setting 'weight_bit'" in error_line(error) and "did you mean 'weight_bits'" in error
