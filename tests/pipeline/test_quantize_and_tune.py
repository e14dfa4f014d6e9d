"""Quantizing and tuning as one run: the same as one after the other, and resumed at whichever of the two it died."""

from pathlib import Path
from typing import Any

import pytest

from nestquant_cli.models.source import resolve
from nestquant_cli.pipeline import quantize_and_tune as tuned
from nestquant_cli.pipeline.quantize_and_tune import quantize_and_tune
from nestquant_cli.pipeline.recipe import Recipe
from nestquant_cli.storage.resume import WORK
from nestquant_cli.tuning.held_out import TuneText
from nestquant_cli.tuning.settings import TuneSettings
from nestquant_cli.tuning.tune import tune
from tests.families import pack

TUNE = {"steps": 24, "seqlen": 32, "held_out": 12, "batch": 4, "rate": 0.003}


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def test_both_in_one_run(
    tiny_model_folder: Path, tiny_text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, text = resolve(str(tiny_model_folder)), str(tiny_text_file)
    packed = pack(tiny_model_folder, tiny_text_file, tmp_path / "packed")
    tune(packed, source, TuneSettings(**TUNE), tmp_path / "after", "cpu", TuneText(text))

    recipe = Recipe(dataset=text, samples=4, seqlen=64, tune=TUNE)

    def dying(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tuned, "tune", dying)
        with pytest.raises(KeyboardInterrupt):
            quantize_and_tune(source, recipe, tmp_path / "one", "cpu")
    assert (tmp_path / "one" / WORK / "untuned" / "config.json").is_file()
    with monkeypatch.context() as patch:
        patch.setattr(tuned, "quantize", dying)  # which is not called again
        report = quantize_and_tune(source, recipe, tmp_path / "one", "cpu")
    assert report["tuning"]["loss_after"] < report["tuning"]["loss_before"]
    assert shards(tmp_path / "one") == shards(tmp_path / "after")
    assert not (tmp_path / "one" / WORK).exists()


def test_a_recipe_without_tuning_only_quantizes(tiny_model_folder: Path, tiny_text_file: Path, tmp_path: Path) -> None:
    packed = pack(tiny_model_folder, tiny_text_file, tmp_path / "packed")
    recipe = Recipe(dataset=str(tiny_text_file), samples=4, seqlen=64)
    quantize_and_tune(resolve(str(tiny_model_folder)), recipe, tmp_path / "plain", "cpu")
    assert shards(tmp_path / "plain") == shards(packed)
