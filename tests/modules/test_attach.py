"""Quantized modules in a model: what a layout must fit, and the packed cache in every way of calling the model."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.cache_utils import DynamicCache, StaticCache

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.checkpoint.read import read_layout
from nestquant_cli.codecs.nested.code import ScaledCode
from nestquant_cli.e8.shape import shape_for_bits
from nestquant_cli.modules.attach import attach, quantized_linears
from nestquant_cli.modules.cache import PackedCache, is_packed
from nestquant_cli.modules.cache_codes import CacheCodes
from nestquant_cli.modules.layout import Layout
from tests.families import CONFIGS, load, logits, make_model, pack, random_ids, relative_error, save_model

FOUR_BITS = shape_for_bits(4)
FOUR = ScaledCode(FOUR_BITS.with_multipliers((3, 4, 5, 6, 9)), 0.9 / 13 / 2)


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


def coded(family: str) -> Any:
    """A model whose keys and values are at 4 bits, and nothing else."""
    model: Any = make_model(family)
    config = model.config.get_text_config(decoder=True)
    layout = Layout(None, None, FOUR_BITS, 3, cache=[CacheCodes(FOUR, FOUR)] * config.num_hidden_layers)
    attach(model, layout)
    return model


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_without_a_cache_keys_and_values_are_rounded_and_none_is_returned(family: str) -> None:
    model, ids = coded(family), random_ids(2, 20)
    with torch.inference_mode():
        expected = model(ids, use_cache=True)
        assert isinstance(expected.past_key_values, PackedCache)
        assert relative_error(expected.logits, make_model(family)(ids).logits) > 1e-3
        by_argument = model(ids, use_cache=False)
        model.config.use_cache = False
        by_config = model(ids)
        again = model(ids, use_cache=True)
    for found in (by_argument, by_config):
        assert found.past_key_values is None and torch.equal(found.logits, expected.logits)
    assert isinstance(again.past_key_values, PackedCache) and again.past_key_values.get_seq_length() == 20


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_generation_without_a_cache_is_that_of_whole_forwards(family: str) -> None:
    model, ids = coded(family), random_ids(1, 20)
    whole = ids
    with torch.inference_mode():
        for _ in range(6):
            whole = torch.cat([whole, model(whole, use_cache=True).logits[:, -1:].argmax(-1)], dim=1)
    fixed = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 1}
    assert torch.equal(model.generate(ids, use_cache=False, **fixed), whole)
    model.config.use_cache = model.generation_config.use_cache = False
    assert torch.equal(model.generate(ids, **fixed), whole)
    assert torch.equal(model.generate(ids, use_cache=True, **fixed), whole)


@pytest.mark.parametrize("family", sorted(CONFIGS))
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(family: str, reentrant: bool) -> None:
    """It takes caches away from layers and runs each a second time."""
    model, ids = coded(family), random_ids(2, 20)
    weight = model.get_input_embeddings().weight
    expected = model(ids, labels=ids, use_cache=False)
    (gradient,) = torch.autograd.grad(expected.loss, weight)
    for module in model.modules():
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    for use_cache in (None, False):
        found = model(ids, labels=ids, use_cache=use_cache)
        assert found.past_key_values is None and torch.equal(found.logits, expected.logits)
        weight.grad = None
        found.loss.backward()
        assert relative_error(weight.grad, gradient) < 1e-5


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
