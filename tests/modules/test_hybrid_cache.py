"""Caches that hold several kinds of layers: attention keeps packed keys and values, other states stay the model's."""

import copy
import pickle
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DYNAMIC_LAYER_TYPE_MAPPING, DynamicIndexedLayer, DynamicLayer, LinearAttentionLayer

from nestquant_cli.codecs.nested.code import ScaledCode
from nestquant_cli.e8.shape import shape_for_bits
from nestquant_cli.modules.attach import attach
from nestquant_cli.modules.cache import PackedCache, RoundingCache, is_packed
from nestquant_cli.modules.cache_codes import CacheCodes
from nestquant_cli.modules.layout import Layout
from nestquant_cli.modules.packed_layers import Packed, can_pack, packed_form
from tests.families import from_config, gaussian, random_ids, relative_error
from tests.hybrids import HYBRIDS

SEED = 3
BITS = shape_for_bits(8)
CODE = ScaledCode(BITS.with_multipliers((3, 4, 6, 9)), 0.9 / 250 / 2)
CODES = CacheCodes(CODE, CODE)
FAMILIES = [family for family in HYBRIDS if family != "mamba2"]  # which has no keys and values


def codes_of(config: PretrainedConfig) -> list[CacheCodes | None]:
    return [CODES if can_pack(layer) else None for layer in DynamicCache(config=config).layers]


@lru_cache
def plain(family: str) -> Any:
    return from_config(HYBRIDS[family]())


@lru_cache
def coded(family: str) -> Any:
    """The same model with keys and values at 8 bits, and nothing else."""
    model = from_config(HYBRIDS[family]())
    attach(model, Layout(None, None, BITS, SEED, cache=codes_of(model.config)))
    return model


def steps(model: Any, ids: Tensor, prompt: int, **settings: Any) -> Tensor:
    """Logits by a prompt and single tokens after it, with an empty cache as generate() brings it."""
    found, cache = [], settings.pop("cache", DynamicCache(config=model.config))
    mask = settings.pop("attention_mask", None)
    for start, end in ((0, prompt), *((token, token + 1) for token in range(prompt, ids.shape[1]))):
        if mask is not None:
            settings["attention_mask"] = mask[:, :end]
            settings["position_ids"] = (mask[:, :end].cumsum(-1) - 1).clamp(min=0)[:, start:end]
        with torch.inference_mode():
            step = model(ids[:, start:end], past_key_values=cache, use_cache=True, **settings)
        cache = getattr(step, "past_key_values", cache)  # a few models return none
        found.append(step.logits)
    return torch.cat(found, 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_cached_steps_follow_a_whole_forward(family: str) -> None:
    ids, cache = random_ids(2, 30), DynamicCache(config=plain(family).config)
    with torch.inference_mode():
        whole = coded(family)(ids, past_key_values=cache, use_cache=True).logits
        assert 1e-6 < relative_error(whole, plain(family)(ids).logits) < 0.02
        assert torch.equal(coded(family)(ids, use_cache=True).logits, whole)
    kinds = [isinstance(layer, Packed) for layer in cache.layers]
    assert is_packed(cache) and kinds == [codes is not None for codes in codes_of(plain(family).config)]
    assert relative_error(steps(coded(family), ids, 20), whole) < 0.02


@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_cache_the_same_keys_and_values_are_seen(family: str) -> None:
    model, ids = coded(family), random_ids(2, 30)
    with torch.inference_mode():
        expected = model(ids, use_cache=True).logits
        found = model(ids, use_cache=False)
        again = model(ids, use_cache=False)
    assert getattr(found, "past_key_values", None) is None
    assert torch.equal(found.logits, expected) and torch.equal(again.logits, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_left_padding_is_as_in_the_plain_model(family: str) -> None:
    ids, padding = random_ids(2, 24), 7
    ids[0, :padding] = 1
    mask = torch.ones_like(ids)
    mask[0, :padding] = 0
    expected = steps(plain(family), ids, 16, attention_mask=mask)
    found = steps(coded(family), ids, 16, attention_mask=mask)
    assert relative_error(found[0, padding:], expected[0, padding:]) < 0.02
    assert relative_error(found[1], expected[1]) < 0.02


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("way", [{"num_beams": 3}, {"use_cache": False}, {}])
def test_generation_is_that_of_the_plain_model(family: str, way: dict[str, Any]) -> None:
    ids = random_ids(2, 20)
    fixed = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 1}
    assert torch.equal(coded(family).generate(ids, **fixed, **way), plain(family).generate(ids, **fixed, **way))


@pytest.mark.parametrize("family", ["gpt2", "lfm2"])  # transformers refuses it for models with recurrent states
def test_assisted_generation_is_that_of_the_plain_model(family: str) -> None:
    fixed = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 1}
    found, expected = (
        model.generate(random_ids(1, 20), prompt_lookup_num_tokens=2, **fixed)
        for model in (coded(family), plain(family))
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "gpt2"])  # which has dropout
def test_gradient_checkpointing_changes_nothing(family: str) -> None:
    model, ids = copy.deepcopy(coded(family)), random_ids(2, 20)
    expected = model(ids, labels=ids, use_cache=False).loss
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    found = model(ids, labels=ids).loss
    assert torch.equal(found, expected)
    found.backward()
    assert model.get_input_embeddings().weight.grad.isfinite().all()


def test_a_model_that_makes_its_cache_itself() -> None:
    from transformers import MiniMaxConfig

    sizes: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 4, "head_dim": 16}
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 2}
    kinds = ["linear_attention", "full_attention"] * 2
    config = MiniMaxConfig(vocab_size=300, **sizes, **heads, layer_types=kinds, initializer_range=0.1)
    model, ids = from_config(config), random_ids(1, 20)
    expected = model(ids, use_cache=True).logits
    attach(model, Layout(None, None, BITS, SEED, cache=codes_of(config)))
    whole = model(ids, use_cache=True)
    assert [isinstance(layer, Packed) for layer in whole.past_key_values.layers] == [False, True, False, True]
    assert 1e-6 < relative_error(whole.logits, expected) < 0.02
    assert torch.equal(model(ids, use_cache=False).logits, whole.logits)
    assert relative_error(steps(model, ids, 16, cache=None), whole.logits) < 0.02
    assert model.generate(ids, max_new_tokens=3, do_sample=False, eos_token_id=None).shape == (1, 23)


def test_a_cache_of_several_kinds_is_copied_and_pickled() -> None:
    config = HYBRIDS["falcon_h1"]()
    cache = PackedCache(config, codes_of(config), SEED)
    states = gaussian(2, 2, 5, 16)
    cache.update(states, states, 0)
    cache.update_conv_state(gaussian(2, 8, 4), 0)
    for copied in (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
        assert type(copied.layers[0]) is type(cache.layers[0]) and copied.get_seq_length() == 5
        assert torch.equal(copied.get_conv_state(0), cache.get_conv_state(0))
        assert copied.update(states, states, 0)[0].shape[2] == copied.get_seq_length() == 10
    assert cache.get_seq_length() == 5
    cache.reorder_cache(torch.LongTensor([1, 1]))
    assert torch.equal(cache.get_conv_state(0)[0], cache.get_conv_state(0)[1])


def test_a_packed_layer_is_no_new_kind_for_transformers() -> None:
    before = dict(DYNAMIC_LAYER_TYPE_MAPPING)

    class Special(DynamicLayer):
        """A model's own layer, as minimax_m3 has one."""

        _layer_type = "special_for_a_test"

    packed = packed_form(Special(), CODES, SEED)
    assert DYNAMIC_LAYER_TYPE_MAPPING.pop("special_for_a_test") is Special and before == DYNAMIC_LAYER_TYPE_MAPPING
    assert isinstance(packed, Special) and packed._layer_type == "special_for_a_test"


def test_keys_of_an_indexer_stay_beside_packed_ones() -> None:
    layer: Any = packed_form(DynamicIndexedLayer(), CODES, SEED)
    states, index = gaussian(1, 2, 5, 16), gaussian(1, 5, 8)
    layer.update(states, states)
    assert torch.equal(layer.update_indexer(index), index)
    layer.crop(-2)
    assert layer.get_seq_length() == 3 and torch.equal(layer.indexer_keys, index[:, :3])


def test_a_layer_with_an_update_of_its_own_cannot_be_packed() -> None:
    class Own(DynamicLayer):
        """A layer that compresses what comes, as DeepSeek V4 has one."""

        def update(self, *states: Any, **_: Any) -> Any:  # type: ignore[override]
            return states

    assert not can_pack(Own()) and not can_pack(LinearAttentionLayer()) and can_pack(DynamicIndexedLayer())


def test_a_rounding_cache_keeps_no_state() -> None:
    config = HYBRIDS["falcon_h1"]()
    cache = RoundingCache(config, codes_of(config), SEED)
    first, second = gaussian(2, 8, 4), gaussian(2, 8, 4, seed=1)
    for states in (first, second):
        assert torch.equal(cache.update_conv_state(states, 0), states)
        assert torch.equal(cache.update_recurrent_state(states, 0), states)
        assert not cache.has_previous_state(0) and cache.get_conv_state(0) is None
        assert cache.update(gaussian(1, 2, 5, 16), gaussian(1, 2, 5, 16), 0)[0].shape[2] == 5
    assert cache.get_seq_length() == 0
