"""Keys and values with bits of their own, and layers whose cache stays in 16 bits, from recipe to running model."""

from pathlib import Path
from typing import Any

import pytest
import torch

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.checkpoint.read import read_layout
from nestquant_cli.models.source import resolve
from nestquant_cli.modules.cache import PackedCache
from nestquant_cli.modules.unrounded import Unrounded
from nestquant_cli.pipeline.quantize import calibrate
from nestquant_cli.pipeline.recipe import Recipe
from tests.families import load, pack, random_ids, relative_error

SETTINGS: dict[str, Any] = {"weight_bits": 16, "act_bits": 16, "key_bits": 6, "value_bits": 3, "kv_skip_layers": "0"}


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path, tiny_text_file: Path) -> Path:
    return pack(tiny_model_folder, tiny_text_file, tmp_path_factory.mktemp("bits") / "packed", **SETTINGS)


def test_the_cache_has_these_bits(packed: Path) -> None:
    layout = read_layout(packed)
    assert layout.version == 7 and layout.cache[0] is None and None not in layout.cache[1:]
    model = load(packed)
    cache = model(random_ids(1, 9)).past_key_values
    size = model.config.head_dim
    assert isinstance(cache, PackedCache) and cache.layers[0].keys.dtype == torch.float32
    for layer in cache.layers[1:]:
        assert layer.keys.shape[-1] == size // 8 * 6 + 2 and layer.values.shape[-1] == size // 8 * 3 + 2
    assert model.generate(random_ids(2, 5), max_new_tokens=4, do_sample=False).shape == (2, 9)


def test_a_stored_calibration_serves_any_choice_of_layers_and_no_other_bits(
    packed: Path, tmp_path: Path, tiny_model_folder: Path, tiny_text_file: Path
) -> None:
    text: dict[str, Any] = {"dataset": str(tiny_text_file), "samples": 4, "seqlen": 64}
    folder, stored = tmp_path / "packed", tmp_path / "stored"
    calibrate(resolve(str(tiny_model_folder)), Recipe(**(SETTINGS | text | {"weight_bits": 4})), stored, "cpu")
    assert read_layout(pack(tiny_model_folder, tiny_text_file, folder, **SETTINGS, calibration=stored)) == read_layout(
        packed
    )
    every = pack(
        tiny_model_folder, tiny_text_file, tmp_path / "all", calibration=stored, **SETTINGS | {"kv_skip_layers": None}
    )
    assert None not in read_layout(every).cache
    for changes in ({"value_bits": 6}, {"value_bits": None, "kv_bits": 6}, {"key_bits": 3}):
        with pytest.raises(NestQuantError, match=r"was calibrated with (kv|value)_code"):
            pack(tiny_model_folder, tiny_text_file, tmp_path / "no", calibration=stored, **SETTINGS | changes)


def test_windows_and_sinks_reach_the_model(tmp_path: Path, tiny_model_folder: Path, tiny_text_file: Path) -> None:
    settings = {"weight_bits": 16, "act_bits": 16, "kv_bits": 3}
    found = []
    for number, tokens in enumerate(({}, {"kv_window": 6, "kv_sinks": 2})):
        folder = pack(tiny_model_folder, tiny_text_file, tmp_path / str(number), **settings | tokens)
        assert read_layout(folder).unrounded == Unrounded(*tokens.values())
        found.append(load(folder)(random_ids(1, 20), use_cache=number == 0).logits)
    assert not torch.equal(found[0][:, :1], found[1][:, :1])
    whole = load(tiny_model_folder)(random_ids(1, 20)).logits
    assert relative_error(found[1][:, :6], whole[:, :6]) < 1e-4  # the first tokens see nothing rounded
    assert relative_error(found[1], whole) < relative_error(found[0], whole)


def test_a_layer_that_the_model_does_not_have_is_refused_before_any_work(
    tmp_path: Path, tiny_model_folder: Path, tiny_text_file: Path
) -> None:
    with pytest.raises(NestQuantError, match="names layer 99"):
        pack(tiny_model_folder, tiny_text_file, tmp_path / "no", **SETTINGS | {"kv_skip_layers": "99"})
    assert not (tmp_path / "no").exists()
