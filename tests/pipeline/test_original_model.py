from pathlib import Path

import pytest

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.calibration.store import Calibration, CalibrationWriter
from nestquant_cli.models.source import fingerprint, resolve
from nestquant_cli.parallel.team import Team
from nestquant_cli.pipeline import original_model
from nestquant_cli.pipeline.recipe import Recipe
from tests.families import pack


def test_an_original_is_a_model_with_its_tokenizer(tiny_model_folder: Path) -> None:
    found = original_model.open_original(resolve(str(tiny_model_folder)), "cpu")
    assert found.depth == len(found.weights.decoder.layers) == 2
    assert found.weights.lazy and len(found.tokenizer) > 0


def test_a_packed_checkpoint_is_no_original(tiny_model_folder: Path, tiny_text_file: Path, tmp_path: Path) -> None:
    packed = pack(tiny_model_folder, tiny_text_file, tmp_path / "packed")
    with pytest.raises(NestQuantError, match="is a packed checkpoint already"):
        original_model.open_original(resolve(str(packed)), "cpu")


def test_what_a_calibration_shares_with_its_quantization(tiny_model_folder: Path) -> None:
    found = original_model.open_original(resolve(str(tiny_model_folder)), "cpu")
    about = original_model.about_model(found, Recipe(seed=5), Team())
    assert about["model_sha256"] == fingerprint(resolve(str(tiny_model_folder))) and about["seed"] == 5
    assert about == original_model.about_model(found, Recipe(seed=5, damping=0.1, samples=3), Team())
    assert about != original_model.about_model(found, Recipe(seed=5, act_bits=3.0), Team())


def test_a_learned_rotation_is_made_for_the_code_of_the_weights(tiny_model_folder: Path, tmp_path: Path) -> None:
    found = original_model.open_original(resolve(str(tiny_model_folder)), "cpu")
    one, same, other, none = (
        original_model.about_model(found, Recipe(rotation="learned", **settings), Team())
        for settings in ({}, {"damping": 0.1}, {"weight_bits": 2.0}, {"weight_bits": 16.0})
    )
    assert one == same != other != none
    writer = CalibrationWriter(tmp_path / "c", one)
    writer.finish(0)
    stored = Calibration(tmp_path / "c")
    stored.check(same)
    for wanted in (other, none):
        with pytest.raises(NestQuantError, match="was calibrated with weight_code"):
            stored.check(wanted)


def test_windows_are_told_by_text_and_choice(tiny_model_folder: Path, tiny_text_file: Path) -> None:
    found = original_model.open_original(resolve(str(tiny_model_folder)), "cpu")
    recipe = Recipe(dataset=str(tiny_text_file), samples=3, seqlen=32)
    text = original_model.text_of(original_model.read_windows(found, recipe))
    assert tuple(text) == original_model.TEXT_KEYS and (text["samples"], text["seqlen"]) == (3, 32)
    assert text == original_model.text_of(original_model.read_windows(found, recipe))
    other = original_model.read_windows(found, Recipe(dataset=str(tiny_text_file), samples=3, seqlen=32, seed=1))
    assert original_model.text_of(other)["tokens_sha256"] != text["tokens_sha256"]


def test_circumstances_leave_out_who_shares_the_work(tiny_model_folder: Path) -> None:
    """Any number of processes gives the same bytes, so another number may go on with a run."""
    found = original_model.open_original(resolve(str(tiny_model_folder)), "cpu")
    assert set(original_model.circumstances(found)) == {"versions", "dtype", "device", "gpu", "processor"}
