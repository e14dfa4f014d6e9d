"""`nestquant tune` and `quantize --tune` in this process."""

from collections.abc import Callable
from pathlib import Path

import pytest

from nestquant_cli.checkpoint.verify import verify
from nestquant_cli.storage.files import read_json
from nestquant_cli.storage.resume import WORK
from tests.families import Outcome, error_line, in_process, pack


@pytest.fixture
def nestquant(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    return in_process(capfd, monkeypatch)


def test_a_checkpoint_is_tuned(
    nestquant: Callable[..., Outcome], tiny_model_folder: Path, tiny_text_file: Path, tmp_path: Path
) -> None:
    packed = pack(tiny_model_folder, tiny_text_file, tmp_path / "packed")
    short = ["--steps", 4, "--seqlen", 32, "--held-out", 3, "--dataset", tiny_text_file, "--output", tmp_path / "out"]
    code, output, _ = nestquant("tune", packed, "--model", tiny_model_folder, *short)
    assert code == 0 and "KL from the original on held-out windows" in output
    code, output, _ = nestquant("inspect", tmp_path / "out")
    assert code == 0 and "'steps': 4" in output
    code, _, error = nestquant("tune", packed, "--model", tiny_model_folder, *short)
    assert code == 2 and "is not empty" in error_line(error)


def test_a_recipe_that_tunes(
    nestquant: Callable[..., Outcome], tiny_model_folder: Path, tiny_text_file: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("tune: {steps: 4, seqlen: 32, held_out: 3}\n")
    text = ["--config", recipe, "--dataset", tiny_text_file, "--samples", 4, "--seqlen", 64]
    code, output, _ = nestquant("quantize", tiny_model_folder, *text, "--output", tmp_path / "tuned")
    assert code == 0 and "tuning: KL" in output
    assert not (tmp_path / "tuned" / WORK).exists()
    assert verify(tmp_path / "tuned", str(tiny_model_folder)).problems == []
    code, output, _ = nestquant("quantize", tiny_model_folder, *text, "--no-tune", "--output", tmp_path / "untuned")
    assert code == 0 and "tuning" not in output
    assert read_json(tmp_path / "untuned" / "config.json")["quantization_config"]["recipe"]["tune"] is None
    recipe.write_text("tune: {pace: 4}\n")
    code, _, error = nestquant("quantize", tiny_model_folder, *text, "--output", tmp_path / "never")
    assert code == 2 and "pace" in error_line(error) and not (tmp_path / "never").exists()
