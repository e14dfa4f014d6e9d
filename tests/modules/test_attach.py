"""Quantized modules in a model: what a layout must fit, and the packed cache in every way of calling the model."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.cache_utils import DynamicCache, StaticCache

from nestquant_cli.checkpoint.read import read_layout
from nestquant_cli.errors import NestQuantError
from nestquant_cli.modules.attach import attach, quantized_linears
from nestquant_cli.modules.cache import PackedCache, is_packed
from nestquant_cli.modules.layout import Layout
from tests.families import load, logits, make_model, pack, random_ids, relative_error, save_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_folder: Path, tiny_text_file: Path) -> Path:
    base = tmp_path_factory.mktemp("attach")
    save_model(make_model("llama"), tiny_tokenizer_folder, base / "model")
    return pack(base / "model", tiny_text_file, base / "packed")


@pytest.fixture(scope="module")
def packed(folder: Path) -> Any:
    return load(folder)


@pytest.fixture
def layout(folder: Path) -> Layout:
    return read_layout(folder)


def test_every_linear_of_the_layers_is_replaced_and_inputs_are_shared(packed: Any) -> None:
    modules = quantized_linears(packed)
    assert len(modules) == 2 * 7
    attention = packed.model.layers[0].self_attn
    assert attention.q_proj.source is attention.k_proj.source is attention.v_proj.source
    assert attention.q_proj.source is not attention.o_proj.source
    assert isinstance(packed.lm_head, torch.nn.Linear)


def test_a_layout_of_another_model_is_refused(layout: Layout) -> None:
    name = "model.layers.0.mlp.up_proj"
    for change in ({"out_features": 8}, {"bias": False}):
        linears = layout.linears | {name: dataclasses.replace(layout.linears[name], **change)}
        with pytest.raises(NestQuantError, match=f"quantized matrix {name} of shape"):
            attach(make_model("llama"), dataclasses.replace(layout, linears=linears))
    linears = {"model.layers.9.mlp.up_proj": layout.linears[name]}
    with pytest.raises(NestQuantError, match=r"quantized matrix model\.layers\.9\.mlp\.up_proj"):
        attach(make_model("llama"), dataclasses.replace(layout, linears=linears))
    with pytest.raises(NestQuantError, match="cache codes for 1 layers, the model has 2"):
        attach(make_model("llama"), dataclasses.replace(layout, cache=layout.cache[:1]))


def test_every_way_of_calling_gives_the_same_logits(packed: Any) -> None:
    ids = random_ids(2, 24)
    expected = logits(packed, ids)
    with torch.inference_mode():
        assert torch.equal(packed(ids, use_cache=False).logits, expected)
        assert torch.equal(packed(ids, past_key_values=DynamicCache(config=packed.config)).logits, expected)
        assert torch.equal(packed(ids, past_key_values=DynamicCache()).logits, expected)
        assert torch.equal(packed.lm_head(packed.model(ids, None, None, None, None, True)[0]), expected)
        assert torch.equal(packed.lm_head(packed.model(ids, None, None, DynamicCache())[0]), expected)
    assert torch.equal(logits(copy.deepcopy(packed), ids), expected)


def test_a_forward_returns_the_packed_cache(packed: Any) -> None:
    cache = packed(random_ids(1, 10), use_cache=True).past_key_values
    assert isinstance(cache, PackedCache) and is_packed(cache)
    assert cache.packed_bytes() == 2 * 2 * 2 * 10 * (16 // 8 * 4 + 2)  # layers, keys and values, heads, tokens, bytes


def test_caches_in_sixteen_bits_are_refused(packed: Any, folder: Path) -> None:
    filled = DynamicCache(config=packed.config)
    for index in range(2):
        filled.update(torch.zeros(1, 2, 3, 16), torch.zeros(1, 2, 3, 16), index)
    with pytest.raises(NestQuantError, match="DynamicCache with 16-bit keys and values"):
        packed(random_ids(1, 4), past_key_values=filled)
    with pytest.raises(NestQuantError, match="StaticCache with 16-bit keys and values"):
        packed(random_ids(1, 4), past_key_values=StaticCache(config=packed.config, max_cache_len=32))
    with pytest.raises(NestQuantError, match="StaticCache with 16-bit keys and values"):
        packed.generate(random_ids(1, 4), max_new_tokens=2, cache_implementation="static")


def test_decoding_with_the_cache_follows_the_full_forward(packed: Any) -> None:
    ids = random_ids(2, 16)
    outputs, cache = [], None
    with torch.inference_mode():
        for start, end in ((0, 8), *((token, token + 1) for token in range(8, 16))):
            step = packed(ids[:, start:end], past_key_values=cache, use_cache=True)
            cache = step.past_key_values
            outputs.append(step.logits)
    assert relative_error(torch.cat(outputs, 1), logits(packed, ids)) < 0.1  # a rounding may fall otherwise


def test_a_continued_conversation_keeps_its_packed_cache(packed: Any) -> None:
    ids = random_ids(1, 8)
    first = packed.generate(ids, max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
    assert is_packed(first.past_key_values)
    again = packed.generate(first.sequences, past_key_values=first.past_key_values, max_new_tokens=4, do_sample=False)
    assert torch.equal(again[:, : first.sequences.shape[1]], first.sequences)


def test_assisted_generation(packed: Any) -> None:
    ids = random_ids(1, 8)
    plain = packed.generate(ids, max_new_tokens=6, do_sample=False)
    assisted = packed.generate(ids, max_new_tokens=6, do_sample=False, prompt_lookup_num_tokens=2)
    assert assisted.shape == plain.shape
