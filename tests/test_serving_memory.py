"""The script that counts the memory of serving, on a tiny checkpoint."""

from pathlib import Path

import pytest
import torch

from nestquant_cli.checkpoint.load import load_model
from nestquant_cli.models.source import resolve
from nestquant_cli.modules.attach import quantized_linears
from nestquant_cli.modules.resident import resident_bytes, set_resident
from scripts import serving_memory
from tests.families import pack, random_ids


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path, tiny_text_file: Path) -> Path:
    return pack(tiny_model_folder, tiny_text_file, tmp_path_factory.mktemp("memory") / "packed")


def test_weights_are_those_of_the_loaded_model(packed: Path) -> None:
    found, model = serving_memory.weights(packed), load_model(resolve(str(packed)))
    entries = sum(layer.out_features * layer.in_features for layer in quantized_linears(model).values())
    kept = found["bfloat16"] - 2 * entries
    set_resident(model, "packed")
    assert found["packed"] - kept == resident_bytes(model)
    set_resident(model, "int8")
    assert found["int8"] - kept <= resident_bytes(model) < 1.1 * (found["int8"] - kept)  # it has some tables, too


def test_the_cache_has_the_bytes_of_a_packed_one(packed: Path) -> None:
    model, tokens = load_model(resolve(str(packed))), 16
    with torch.no_grad():
        cache = model(input_ids=random_ids(1, tokens), use_cache=True).past_key_values
    plain, coded = serving_memory.cache(packed)
    assert cache.packed_bytes() == coded * tokens and coded < 0.4 * plain


def test_a_row_for_each_checkpoint(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["serving_memory.py", str(packed), str(packed), "--tokens", "100"])
    assert serving_memory.main() == 0
    heading, _, *rows = capsys.readouterr().out.splitlines()
    assert "cache of 100 tokens, packed" in heading and len(rows) == 2 and rows[0].count("|") == heading.count("|")
    monkeypatch.setattr("sys.argv", ["serving_memory.py", str(tmp_path)])
    assert serving_memory.main() == 2 and "error: " in capsys.readouterr().err
