"""One forward on the meta device shows which Linears are called and the head sizes of keys and values."""

from typing import Any

import pytest
import torch
from transformers import (
    BartConfig,
    DeepseekV3Config,
    Gemma4TextConfig,
    Llama4TextConfig,
    LlamaConfig,
    LongcatFlashConfig,
    MixtralConfig,
    OpenAIGPTConfig,
    PretrainedConfig,
    WhisperConfig,
)

from nestquant_cli.models.probe import HeadSizes, probe
from nestquant_cli.models.size_limits import meta_model
from nestquant_cli.models.structure import linears, open_decoder
from tests.families import CONFIGS, from_config, random_ids

SIZES: dict[str, Any] = {"vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
GATED = SIZES | {"intermediate_size": 128, "num_key_value_heads": 2}
DECODER: dict[str, Any] = {"vocab_size": 300, "d_model": 64, "decoder_layers": 2, "decoder_attention_heads": 4}
DECODER |= {"decoder_ffn_dim": 128, "is_encoder_decoder": False, "is_decoder": True, "pad_token_id": 1}
CROSS = {f"encoder_attn.{name}_proj" for name in ("q", "k", "v", "out")}
MANY: dict[str, tuple[PretrainedConfig, set[str], dict[int, tuple[int, int]]]] = {
    "experts": (MixtralConfig(**GATED, num_local_experts=4), set(), {0: (16, 16), 1: (16, 16)}),
    "cross-attention": (BartConfig(**DECODER), CROSS, {0: (16, 16), 1: (16, 16)}),
    "speech": (WhisperConfig(**DECODER, encoder_layers=2), CROSS, {0: (16, 16), 1: (16, 16)}),
    "no cache": (OpenAIGPTConfig(vocab_size=300, n_embd=64, n_layer=2, n_head=4), set(), {}),
    "other values": (
        DeepseekV3Config(
            **GATED | {"num_key_value_heads": 4},
            first_k_dense_replace=2,
            kv_lora_rank=32,
            q_lora_rank=24,
            qk_nope_head_dim=8,
            qk_rope_head_dim=16,
            v_head_dim=16,
        ),
        set(),
        {0: (32, 16), 1: (32, 16)},  # a latent for all heads, and its rotary part
    ),
    "heads of two sizes": (
        Gemma4TextConfig(
            **GATED,
            head_dim=16,
            global_head_dim=32,
            layer_types=["sliding_attention", "full_attention"],
            hidden_size_per_layer_input=0,
            num_kv_shared_layers=0,
        ),
        set(),
        {0: (16, 16), 1: (32, 32)},
    ),
}


@pytest.mark.parametrize("kind", MANY)
def test_a_text_reaches_what_a_forward_reaches(kind: str) -> None:
    config, uncalled, heads = MANY[kind]
    model = meta_model(config)
    found = probe(model, open_decoder(model))
    assert found is not None and found.heads == heads
    assert found.uncalled == ({0: found.uncalled[0], 1: found.uncalled[1]} if uncalled else {})
    assert all(set(names) == uncalled for names in found.uncalled.values())


@pytest.mark.parametrize("family", CONFIGS)
def test_it_agrees_with_a_forward_of_numbers(family: str) -> None:
    config = CONFIGS[family]()
    meta, model = meta_model(config), from_config(config)
    found, cache = probe(meta, open_decoder(meta)), HeadSizes(model.config)
    decoder = open_decoder(model)
    called: set[str] = set()
    for index, layer in enumerate(decoder.layers):
        for name, linear in linears(layer).items():
            linear.register_forward_pre_hook(lambda *_, name=f"{index}.{name}": called.add(name))
    with torch.no_grad():
        model(input_ids=random_ids(1, 5), past_key_values=cache)
    assert found is not None and found.heads == cache.sizes
    every = {f"{index}.{name}" for index, layer in enumerate(decoder.layers) for name in linears(layer)}
    assert every - called == {f"{index}.{name}" for index, names in found.uncalled.items() for name in names} == set()


def test_a_model_is_left_as_it_was() -> None:
    model = meta_model(MixtralConfig(**GATED, num_local_experts=4))
    decoder = open_decoder(model)
    before = [(name, type(module), vars(module).get("forward")) for name, module in model.named_modules()]
    probe(model, decoder)
    assert before == [(name, type(module), vars(module).get("forward")) for name, module in model.named_modules()]
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_model_that_needs_numbers_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = meta_model(LlamaConfig(**GATED))
    decoder = open_decoder(model)
    monkeypatch.setattr(decoder.layers[0], "forward", lambda hidden, **_: hidden[hidden.tolist()])
    assert probe(model, decoder) is None


EXPERTS: dict[str, tuple[PretrainedConfig, int, float]] = {
    "of all": (MixtralConfig(**GATED, num_local_experts=6, num_experts_per_tok=3), 6, 1 / 2),
    "of groups": (
        DeepseekV3Config(
            **GATED | {"num_key_value_heads": 4},
            first_k_dense_replace=0,
            n_routed_experts=16,
            n_group=4,
            topk_group=2,
            num_experts_per_tok=4,
            moe_intermediate_size=32,
        ),
        16,
        1 / 4,
    ),
    "of some that compute nothing": (
        LongcatFlashConfig(
            vocab_size=300,
            hidden_size=64,
            num_layers=1,
            num_attention_heads=4,
            ffn_hidden_size=128,
            n_routed_experts=6,
            zero_expert_num=2,
            moe_topk=2,
            expert_ffn_hidden_size=32,
        ),
        6,
        2 / 8,
    ),
    "one": (Llama4TextConfig(**GATED, num_local_experts=4, num_experts_per_tok=1, intermediate_size_mlp=64), 4, 1 / 4),
    "none": (LlamaConfig(**GATED), 4, 1.0),
}


@pytest.mark.parametrize("kind", EXPERTS)
def test_the_share_of_tokens_of_an_expert_is_that_of_the_router(kind: str) -> None:
    config, experts, share = EXPERTS[kind]
    model = meta_model(config)
    found = probe(model, open_decoder(model))
    assert found is not None and found.share(experts) == share
