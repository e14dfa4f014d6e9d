from pathlib import Path

from nestquant_cli.models.source import resolve
from nestquant_cli.pipeline.calibration_windows import TEXT_KEYS, read_windows, text_of
from nestquant_cli.pipeline.original_model import open_original
from nestquant_cli.pipeline.recipe import Recipe


def test_windows_are_recorded_by_text_and_choice(tiny_model_folder: Path, tiny_text_file: Path) -> None:
    found = open_original(resolve(str(tiny_model_folder)), "cpu")
    recipe = Recipe(dataset=str(tiny_text_file), samples=3, seqlen=32)
    text = text_of(read_windows(found, recipe))
    assert tuple(text) == TEXT_KEYS and (text["samples"], text["seqlen"]) == (3, 32)
    assert text == text_of(read_windows(found, recipe))
    other = read_windows(found, Recipe(dataset=str(tiny_text_file), samples=3, seqlen=32, seed=1))
    assert text_of(other)["tokens_sha256"] != text["tokens_sha256"]
