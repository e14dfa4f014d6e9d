"""`nestquant calibrate` and what `quantize` makes of its folder, in this process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nestquant_cli.storage.files import read_json
from tests.families import Outcome, error_line, in_process


@pytest.fixture
def nestquant(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    return in_process(capfd, monkeypatch)


@pytest.fixture
def text(tiny_text_file: Path) -> list[object]:
    return ["--dataset", tiny_text_file, "--samples", 3, "--seqlen", 48]


def test_a_calibration_is_written_and_used(
    nestquant: Callable[..., Outcome], text: list[object], tiny_model_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "calibration"
    code, output, _ = nestquant("calibrate", tiny_model_folder, "--output", folder, *text)
    assert code == 0
    assert "3 windows of 48 tokens" in output
    assert f"result: {folder}" in output and f"--calibration {folder}" in output
    about: dict[str, Any] = read_json(folder / "calibration.json")
    assert (about["samples"], about["seqlen"], about["seed"], len(about["layers"])) == (3, 48, 0, 2)
    assert sorted(path.name for path in folder.iterdir()) == [
        "calibration.json",
        "layer-00000.safetensors",
        "layer-00001.safetensors",
    ]
    packed = tmp_path / "packed"
    code, _, _ = nestquant("quantize", tiny_model_folder, "--calibration", folder, "--output", packed)
    assert code == 0
    assert read_json(packed / "config.json")["quantization_config"]["recipe"]["samples"] == 3

    code, _, error = nestquant("calibrate", tiny_model_folder, "--output", folder, *text)
    assert code == 2 and "is not empty" in error_line(error)


def test_the_folder_is_named_after_the_model(
    nestquant: Callable[..., Outcome],
    text: list[object],
    tiny_model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert nestquant("calibrate", tiny_model_folder, *text, "--kv-bits", 16)[0] == 0
    assert read_json(tmp_path / "tiny-llama-calibration" / "calibration.json")["kv_code"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seqlen", 10**6], "longer than the model's context of 256"),
        (["--seqlen", 1], "--seqlen"),
        (["--samples", 0], "--samples"),
        (["--act-bits", 4.3], "not a multiple of 1/8"),
        (["--act-bits", 9], "out of range"),
        (["--dataset", "nowhere.txt"], "nowhere.txt cannot be read"),
        (["--dataset", "wikitext3"], "'wikitext3' is not a data set"),
        (["--device", "abacus"], "device 'abacus' cannot be used"),
        (["--config", "nowhere.yaml"], "nowhere.yaml cannot be read"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing_behind(
    nestquant: Callable[..., Outcome],
    text: list[object],
    tiny_model_folder: Path,
    tmp_path: Path,
    options: list[object],
    message: str,
) -> None:
    code, output, error = nestquant("calibrate", tiny_model_folder, "--output", tmp_path / "c", *text, *options)
    assert (code, output) == (2, "")
    assert message in error_line(error)
    assert not (tmp_path / "c").exists()
