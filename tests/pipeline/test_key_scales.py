"""Factors of the channels of keys, from quantizing to generation and all that is done with a checkpoint."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.checkpoint.inspect import inspect
from nestquant_cli.checkpoint.read import read_layout
from nestquant_cli.checkpoint.verify import verify
from nestquant_cli.codecs.factored import FactoredCode
from nestquant_cli.models.source import resolve
from nestquant_cli.pipeline.quantize import calibrate
from nestquant_cli.pipeline.recipe import Recipe
from tests.families import gaussian, load, logits, make_model, pack, random_ids, relative_error, save_model

KV: dict[str, Any] = {"weight_bits": 16.0, "act_bits": 16.0, "kv_bits": 3.0}


@pytest.fixture(scope="module")
def original(tiny_tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose keys are large in other channels than its queries."""
    model: Any = make_model("llama")
    with torch.no_grad():
        for number, layer in enumerate(model.model.layers):
            keys, queries = layer.self_attn.k_proj, layer.self_attn.q_proj
            pairs = torch.exp2(1.5 * gaussian(keys.out_features // 2, seed=number)).view(-1, 1, 8)
            factors = pairs.expand(-1, 2, -1).reshape(-1, 16)  # rotary embedding mixes channels i and i + 8
            for linear, factor in ((keys, factors), (queries, (1 / factors).repeat_interleave(2, 0))):
                linear.weight.mul_(factor.reshape(-1, 1))
                linear.bias.mul_(factor.reshape(-1))
    return save_model(model, tiny_tokenizer_folder, tmp_path_factory.mktemp("keys") / "model")


def layers_of(folder: Path) -> list[Any]:
    layers: list[Any] = json.loads((folder / "config.json").read_text())["quantization_config"]["layout"]["cache"]
    return layers


def test_quantized_with_factors_of_keys(original: Path, tiny_text_file: Path, tmp_path: Path) -> None:
    exact, errors = logits(load(original), random_ids(2, 24)), []
    for scales in (False, True):
        packed = pack(original, tiny_text_file, tmp_path / str(scales), key_scales=scales, **KV)
        assert not verify(packed, str(original)).problems
        inspect(packed)
        errors.append(relative_error(logits(load(packed), random_ids(2, 24)), exact))
    assert errors[1] < 0.8 * errors[0]
    assert all("factors" not in layer["keys"] for layer in layers_of(tmp_path / "False"))
    for layer in layers_of(tmp_path / "True"):
        assert [len(text) for text in layer["keys"]["factors"]] == [16, 16] and "factors" not in layer["values"]
    model = load(tmp_path / "True")
    model.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(load(tmp_path / "again"), random_ids(2, 24)), logits(model, random_ids(2, 24)))


@pytest.mark.parametrize("tokens", [{}, {"kv_window": 4, "kv_sinks": 2}])
def test_token_by_token_as_at_once(
    original: Path, tiny_text_file: Path, tmp_path: Path, tokens: dict[str, int]
) -> None:
    packed = pack(original, tiny_text_file, tmp_path / "packed", key_scales=True, **KV, **tokens)
    model, ids = load(packed), random_ids(2, 24)
    cache, found = None, []
    with torch.no_grad():
        for part in ids.split([10, *[1] * 14], dim=1):
            out = model(part, past_key_values=cache, use_cache=True)
            cache, found = out.past_key_values, [*found, out.logits]
        assert relative_error(torch.cat(found, 1), logits(model, ids)) < 1e-4
        assert relative_error(model(ids, use_cache=False).logits, logits(model, ids)) < 1e-4


@pytest.mark.parametrize(
    "settings", [{"method": "integer"}, {"rotation": "none"}, {"sequential": True, "weight_bits": 4}]
)
def test_other_recipes_have_them_too(
    original: Path, tiny_text_file: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    errors, exact = [], logits(load(original), random_ids(2, 24))
    for scales in (False, True):
        packed = pack(original, tiny_text_file, tmp_path / str(scales), key_scales=scales, **KV | settings)
        errors.append(relative_error(logits(load(packed), random_ids(2, 24)), exact))
    assert all("factors" in layer["keys"] for layer in layers_of(packed)) and errors[1] < errors[0]


def test_a_stored_calibration_has_the_factors(original: Path, tiny_text_file: Path, tmp_path: Path) -> None:
    text: dict[str, Any] = {"dataset": str(tiny_text_file), "samples": 4, "seqlen": 64}
    recipe = {"kv_bits": 4.0, "act_bits": 16.0, "paths": 1}
    calibrate(resolve(str(original)), Recipe(**text, **recipe, key_scales=True), tmp_path / "stored", "cpu")
    stored: dict[str, Any] = {"calibration": tmp_path / "stored"}
    direct = pack(original, tiny_text_file, tmp_path / "direct", key_scales=True, **recipe)
    packed = pack(original, tiny_text_file, tmp_path / "packed", key_scales=True, **recipe, **stored)
    assert read_layout(direct) == read_layout(packed)
    assert all(layer is not None and isinstance(layer.keys, FactoredCode) for layer in read_layout(packed).cache)
    with pytest.raises(NestQuantError, match="calibrated with key_scales True, not False"):
        pack(original, tiny_text_file, tmp_path / "other", **recipe, **stored)
    weights = pack(original, tiny_text_file, tmp_path / "weights", **recipe | {"kv_bits": 16.0}, **stored)
    assert read_layout(weights).cache == []


def test_a_cache_in_sixteen_bits_has_no_keys_to_scale() -> None:
    with pytest.raises(NestQuantError, match="key_scales is for a cache with fewer than 16 bits"):
        Recipe(kv_bits=16.0, key_scales=True)


def test_the_bytes_of_other_recipes_do_not_name_the_setting() -> None:
    assert "key_scales" not in Recipe().to_dict() and Recipe(key_scales=True).to_dict()["key_scales"] is True
