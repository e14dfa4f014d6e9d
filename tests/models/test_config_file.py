"""Configurations are written as transformers reads them, whatever numbers are in them."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    Gemma3Config,
    GenerationConfig,
    GraniteMoeHybridConfig,
    PretrainedConfig,
)

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.models.config_file import generation_settings, json_ready, model_config
from nestquant_cli.storage.files import read_json
from tests.families import from_config, make_model, pack, save_model

DENSE: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 128,
    "shared_intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 0,
    "layer_types": ["attention", "attention"],
}

numbers = st.one_of(st.floats(), st.integers(), st.none(), st.booleans(), st.text(max_size=4))
values = st.recursive(
    numbers, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=4), inner), max_leaves=8
)


@given(value=values)
def test_transformers_reads_back_every_number(value: Any) -> None:
    written = json.loads(json.dumps(json_ready({"value": value}, "it"), allow_nan=False))
    found = PretrainedConfig._decode_special_floats(written)["value"]
    assert repr(found) == repr(value)  # NaN equals nothing


def test_an_infinite_limit_of_a_state_space_is_written_and_read_back_equal(
    tmp_path: Path, tiny_tokenizer_folder: Path, tiny_text_file: Path
) -> None:
    model = from_config(GraniteMoeHybridConfig(**DENSE))
    assert math.isinf(model.config.time_step_limit[1])
    folder = save_model(model, tiny_tokenizer_folder, tmp_path / "model")
    packed = pack(folder, tiny_text_file, tmp_path / "packed")
    assert read_json(packed / "config.json")["time_step_limit"] == [0.0, {"__float__": "Infinity"}]
    found: Any = AutoConfig.from_pretrained(packed)
    original: Any = AutoConfig.from_pretrained(folder)
    assert found.time_step_limit == original.time_step_limit and tuple(found.time_step_limit) == (0.0, math.inf)


def test_a_value_that_json_cannot_hold_is_refused_by_its_name() -> None:
    model = make_model("llama")
    model.config.steps = {"inner": [{1, 2}]}
    with pytest.raises(NestQuantError, match=r"steps of config\.json is a set, which JSON cannot hold"):
        model_config(model)


def test_generation_settings_that_are_infinite_are_refused_by_name() -> None:
    assert generation_settings(GenerationConfig(eos_token_id=1, temperature=0.5))["temperature"] == 0.5
    with pytest.raises(NestQuantError, match=r"temperature of generation_config\.json is Infinity.*correct it"):
        generation_settings(GenerationConfig(temperature=math.inf))


def test_a_head_of_its_own_is_said_of_the_language_model_inside_too() -> None:
    text = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma3Config(text_config=text | {"head_dim": 8, "vocab_size": 64}, vision_config=text | {"image_size": 28})
    with torch.device("meta"):
        model: Any = AutoModelForImageTextToText.from_config(config)
    assert model_config(model)["tie_word_embeddings"] and model.all_tied_weights_keys
    model.all_tied_weights_keys = {}
    written = model_config(model)
    assert not written["tie_word_embeddings"] and not written["text_config"]["tie_word_embeddings"]
