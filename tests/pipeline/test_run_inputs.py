from pathlib import Path

import pytest

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.calibration.store import Calibration
from nestquant_cli.calibration.store_writer import CalibrationWriter
from nestquant_cli.models.source import fingerprint, resolve
from nestquant_cli.pipeline.original_model import open_original
from nestquant_cli.pipeline.recipe import Recipe
from nestquant_cli.pipeline.run_inputs import about_model, circumstances, run_inputs


def test_what_a_calibration_shares_with_its_quantization(tiny_model_folder: Path) -> None:
    found = open_original(resolve(str(tiny_model_folder)), "cpu")
    about = about_model(found, Recipe(seed=5))
    assert about["model_sha256"] == fingerprint(resolve(str(tiny_model_folder))) and about["seed"] == 5
    assert about == about_model(found, Recipe(seed=5, damping=0.1, samples=3))
    assert about != about_model(found, Recipe(seed=5, act_bits=3.0))


def test_a_learned_rotation_is_made_for_the_code_of_the_weights(tiny_model_folder: Path, tmp_path: Path) -> None:
    found = open_original(resolve(str(tiny_model_folder)), "cpu")
    one, same, other, none = (
        about_model(found, Recipe(rotation="learned", **settings))
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


def test_circumstances_leave_out_who_shares_the_work(tiny_model_folder: Path) -> None:
    """Any number of processes gives the same bytes, so another number may go on with a run."""
    found = open_original(resolve(str(tiny_model_folder)), "cpu")
    assert set(circumstances(found)) == {"versions", "dtype", "device", "gpu", "processor"}


def test_a_stored_calibration_takes_the_place_of_the_text(
    tiny_model_folder: Path, tiny_text_file: Path, tmp_path: Path
) -> None:
    original = open_original(resolve(str(tiny_model_folder)), "cpu")
    recipe = Recipe(dataset=str(tiny_text_file), samples=3, seqlen=32)
    fresh = run_inputs(original, recipe)
    assert fresh.windows is not None and fresh.stored == {}
    assert fresh.origin["tokens_sha256"] == fresh.text["tokens_sha256"] == fresh.windows.sha256
    CalibrationWriter(tmp_path / "c", fresh.about | fresh.text).finish(0)
    stored = Calibration(tmp_path / "c")
    again = run_inputs(original, Recipe(), stored)
    assert again.windows is None and again.text == fresh.text and len(again.stored["calibration_sha256"]) == 64
    with pytest.raises(NestQuantError, match="was calibrated with samples 3, not 4"):
        run_inputs(original, Recipe(samples=4), stored, explicit=("samples",))
