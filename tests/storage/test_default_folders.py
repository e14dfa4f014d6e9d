"""Names of output folders that a command and the API choose."""

from pathlib import Path

import pytest

from nestquant_cli.storage.default_folders import calibration_folder, comparison_folder, packed_folder, tuned_folder


@pytest.mark.parametrize("model", ["org/model", "model"])
def test_a_folder_is_named_after_the_last_part_of_the_model(model: str) -> None:
    assert packed_folder(model, "w4a4kv4") == Path("model-nestquant-w4a4kv4")
    assert calibration_folder(model) == Path("model-calibration")
    assert comparison_folder(model) == Path("model-comparison")


def test_a_tuned_checkpoint_lies_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tuned_folder(tmp_path / "packed") == Path("packed-tuned")
    monkeypatch.chdir(tmp_path)
    assert tuned_folder(Path(".")) == Path(f"{tmp_path.name}-tuned")
