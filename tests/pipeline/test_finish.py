"""What lies beside the shards: the report and the settings of generation."""

from collections.abc import Callable
from pathlib import Path

import torch

from nestquant_cli.storage.files import read_json, write_json
from tests.families import pack


def test_the_report_says_what_was_done(tmp_path: Path, tiny_model_folder: Path, tiny_text_file: Path) -> None:
    packed = pack(tiny_model_folder, tiny_text_file, tmp_path / "packed")
    report = read_json(packed / "quantization_report.json")
    assert len(report["matrices"]) == 14
    assert report["recipe"]["dataset"] == str(tiny_text_file) and report["recipe"]["tokens_sha256"]
    assert report["bits"] == {"weight": 4.0, "act": 4.0, "kv": 4.0}
    assert "seconds" not in report and report["versions"]["torch"] == torch.__version__
    assert not (packed / "INCOMPLETE").exists()


def test_generation_settings_that_transformers_would_not_save_are_kept(
    tmp_path: Path, make_model_folder: Callable[[Path, int], Path], tiny_text_file: Path
) -> None:
    folder = make_model_folder(tmp_path / "model", 0)
    write_json(folder / "generation_config.json", {"do_sample": False, "temperature": 0.5, "eos_token_id": 1})
    saved = read_json(pack(folder, tiny_text_file, tmp_path / "packed") / "generation_config.json")
    assert saved["temperature"] == 0.5 and saved["eos_token_id"] == 1
