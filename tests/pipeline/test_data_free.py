"""A model quantized while transformers loads it, without calibration."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Gemma4TextConfig

from nestquant_cli import NestQuantConfig
from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.checkpoint.inspect import inspect
from nestquant_cli.checkpoint.load import load_model
from nestquant_cli.checkpoint.verify import verify
from nestquant_cli.evaluation.perplexity import score
from nestquant_cli.models.source import resolve
from nestquant_cli.modules.attach import quantized_linears
from tests.families import from_config, load, logits, make_model, random_ids, relative_error, save_model

IDS = random_ids(2, 24)


@pytest.fixture(scope="module", params=["mistral", "gpt_neox"])
def folder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_folder: Path
) -> Path:
    return save_model(
        make_model(request.param), tiny_tokenizer_folder, tmp_path_factory.mktemp(request.param) / "model"
    )


def quantized(folder: Path, **settings: Any) -> Any:
    return load(folder, quantization_config=NestQuantConfig(**settings))


def test_weights_alone_are_quantized_by_default(folder: Path) -> None:
    model, original = quantized(folder, bits=4), load(folder)
    for name, linear in quantized_linears(model).items():
        assert linear.resident == "packed" and linear.source.code is None
        assert relative_error(linear.dequantized(), original.get_submodule(name).weight.detach()) < 0.09, name
    assert len(quantized_linears(model)) >= 8
    assert model.config.quantization_config.bits == {"weight": 4.0, "act": 16.0, "kv": 16.0}
    assert relative_error(logits(model, IDS), logits(original, IDS)) < 0.5


def test_linears_with_the_same_input_share_its_rotation(folder: Path) -> None:
    linears = quantized_linears(quantized(folder, bits=4))
    own = [linear.source for name, linear in linears.items() if name.endswith(("q_proj", "k_proj", "v_proj"))]
    assert len({id(source) for source in own}) == len(own) // 3


def test_eight_bits_of_everything_are_close_to_the_original(folder: Path) -> None:
    model = quantized(folder, bits=8, act_bits=8, kv_bits=8)
    assert relative_error(logits(model, IDS), logits(load(folder), IDS)) < 0.05


def test_saved_it_is_a_checkpoint_like_any_other(folder: Path, tmp_path: Path) -> None:
    model = quantized(folder, bits=3.5, act_bits=4, kv_bits=4, seed=7)
    model.save_pretrained(tmp_path)
    verify(tmp_path).refuse()
    verify(tmp_path, str(folder)).refuse()
    assert inspect(tmp_path).as_json()["bits_per_weight"] < 5  # row scales of such narrow matrices included
    again = load_model(resolve(str(tmp_path)))
    assert torch.equal(logits(again, IDS), logits(model, IDS))
    assert score(again, IDS).perplexity > 1


def test_what_cannot_be_is_refused_in_one_line(folder: Path) -> None:
    with pytest.raises(NestQuantError, match="the NestQuantConfig has no bits"):
        load(folder, quantization_config=NestQuantConfig())
    with pytest.raises(NestQuantError, match="nothing was quantized"):
        NestQuantConfig(bits=9)


def test_a_packed_checkpoint_keeps_its_own_bits(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    quantized(folder, bits=4).save_pretrained(tmp_path)
    caplog.set_level(logging.ERROR)
    with pytest.warns(UserWarning, match="will be used"):
        model = quantized(tmp_path, bits=3)
    assert model.config.quantization_config.bits["weight"] == 4.0


def test_head_sizes_are_those_of_each_layer(tmp_path: Path) -> None:
    config = Gemma4TextConfig(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        global_head_dim=32,
        layer_types=["sliding_attention", "full_attention"],
        hidden_size_per_layer_input=0,
        num_kv_shared_layers=0,
    )
    from_config(config).save_pretrained(tmp_path / "model")
    model = load(tmp_path / "model", quantization_config=NestQuantConfig(bits=4, act_bits=4, kv_bits=4))
    result = model(input_ids=random_ids(1, 20), use_cache=True)
    assert [
        layer.codes.keys.vector_bytes(size) for layer, size in zip(result.past_key_values.layers, (16, 32), strict=True)
    ] == [layer.keys.shape[-1] for layer in result.past_key_values.layers]
    model.save_pretrained(tmp_path / "packed")
    assert torch.equal(logits(load(tmp_path / "packed"), random_ids(1, 20)), logits(model, random_ids(1, 20)))
