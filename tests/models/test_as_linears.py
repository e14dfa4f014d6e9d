"""Matrices that are no nn.Linear are made one, and the model computes what it did."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GptOssConfig,
    Llama4TextConfig,
    MixtralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2MoeConfig,
)

from nestquant_cli.models.as_linears import experts_of, own_tensors, routers_of
from nestquant_cli.models.structure import linears, open_decoder
from nestquant_cli.models.weights import Weights

SIZES: dict[str, Any] = {"vocab_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "initializer_range": 0.3}
GATED: dict[str, Any] = SIZES | {"hidden_size": 16, "intermediate_size": 24, "num_key_value_heads": 2, "head_dim": 8}
CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "gpt2": lambda: GPT2Config(vocab_size=64, n_layer=2, n_embd=16, n_head=2, initializer_range=0.3),
    "mixtral": lambda: MixtralConfig(**GATED, num_local_experts=4),
    "gpt_oss": lambda: GptOssConfig(**GATED, num_local_experts=4, num_experts_per_tok=2),
    "llama4": lambda: Llama4TextConfig(**GATED, num_local_experts=4, intermediate_size_mlp=32, moe_layers=[0, 1]),
    "qwen2_moe": lambda: Qwen2MoeConfig(
        **GATED, num_experts=4, moe_intermediate_size=24, shared_expert_intermediate_size=16
    ),
}


def made(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(CONFIGS[kind]()).eval()
    for parameter in model.parameters():
        if parameter.dim() == 3:
            nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("kind", CONFIGS)
@torch.no_grad()
def test_a_model_of_linears_computes_the_same(kind: str) -> None:
    model = made(kind)
    ids = torch.arange(24).reshape(2, 12)
    before = model(input_ids=ids, use_cache=False).logits
    decoder = open_decoder(model)
    calls: set[str] = set()
    for name, linear in linears(decoder.layers[0]).items():
        linear.register_forward_pre_hook(lambda *_, name=name: calls.add(name))
    torch.testing.assert_close(model(input_ids=ids, use_cache=False).logits, before, atol=1e-5, rtol=1e-5)
    assert len(calls) > len(linears(decoder.layers[0])) // 2
    assert all(parameter.dim() < 3 for parameter in decoder.layers.parameters())


@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss", "llama4", "qwen2_moe"])
def test_experts_share_the_memory_of_their_parameter(kind: str) -> None:
    model = made(kind)
    name, parameter = next((name, value) for name, value in model.named_parameters() if value.dim() == 3)
    open_decoder(model)
    matrices = model.get_submodule(name)
    assert matrices.shape == parameter.shape
    assert next(matrices.parameters()).data_ptr() == parameter.data_ptr()
    torch.testing.assert_close(matrices.dense(), parameter.detach())


def test_routers_and_gates_of_shared_experts_stay() -> None:
    layer = open_decoder(made("qwen2_moe")).layers[0]
    assert routers_of(layer) == ["mlp.gate", "mlp.shared_expert_gate"]
    names = set(linears(layer))
    assert "mlp.shared_expert.down_proj" in names
    assert not any("gate.weight" in name or name == "mlp.shared_expert_gate" for name in names)
    assert list(experts_of(layer)) == ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_tensors_of_the_class_are_given_back(kind: str) -> None:
    model = made(kind)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights = Weights(model)
    decoder = weights.decoder
    for index, layer in enumerate(decoder.layers):
        prefix = f"{decoder.layer_name(index)}."
        wanted = {name.removeprefix(prefix): tensor for name, tensor in before.items() if name.startswith(prefix)}
        found = own_tensors(layer)
        assert found.keys() == wanted.keys()
        for name, tensor in wanted.items():
            assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
            pieces = list(weights.pieces(prefix + name)) if found[name].is_meta else [found[name]]
            assert torch.equal(torch.cat([piece.flatten() for piece in pieces]), tensor.flatten())
