"""Experts as they are loaded and multiplied for vLLM, without vLLM: what they give is what transformers gives."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, MixtralConfig, PretrainedConfig, Qwen3MoeConfig

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.integrations.vllm.coded_experts import ACTIVATIONS, CodedExperts
from nestquant_cli.integrations.vllm.expert_names import expert_matrices, parameter_of
from nestquant_cli.integrations.vllm.expert_weights import ExpertLoader
from nestquant_cli.integrations.vllm.state import RESIDENT, ModelState
from nestquant_cli.models.experts import ExpertMatrices
from nestquant_cli.pipeline.data_free import data_free_recipe, quantize_loaded
from tests.families import gaussian

EXPERTS, HIDDEN, TOKENS = 5, 32, 7
SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": HIDDEN, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 16, "initializer_range": 0.3,
}  # fmt: skip
CONFIGS: dict[str, PretrainedConfig] = {
    "mixtral": MixtralConfig(**SIZES, num_local_experts=EXPERTS),
    "qwen3_moe": Qwen3MoeConfig(**SIZES, num_experts=EXPERTS, num_experts_per_tok=2, moe_intermediate_size=32),
}


def packed(kind: str, act_bits: float, tensor_parallel: int = 1) -> tuple[Any, ModelState]:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[kind], dtype=torch.float32).eval()
    layout, _ = quantize_loaded(model, data_free_recipe(4, act_bits, 16, 0, tensor_parallel))
    return model, ModelState(layout.to_dict())


def experts_in(model: Any) -> tuple[str, Any]:
    return next(
        (name, module)
        for name, module in model.named_modules()
        if any(isinstance(child, ExpertMatrices) for child in module.children())
    )


def loaders(model: Any, state: ModelState) -> list[ExpertLoader]:
    names = state.names.below(experts_in(model)[0])
    return [
        ExpertLoader(matrix, [state.layout.linears[name] for name in matrix.names], state, torch.float32)
        for matrix in expert_matrices(names, EXPERTS)
    ]


def fill(loader: ExpertLoader, parameter: str, tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        matrix, _, stored = name.partition(".expert_")
        if matrix.endswith(parameter):
            number, _, stored = stored.partition(".")
            loader.load(parameter_of(stored), int(number), tensor)


@pytest.mark.parametrize("form", ["packed", "int8"])
@pytest.mark.parametrize(
    ("kind", "act_bits", "parts"), [("mixtral", 16, 1), ("mixtral", 8, 1), ("mixtral", 4, 2), ("qwen3_moe", 16, 2)]
)
def test_they_give_what_transformers_gives(
    kind: str, act_bits: float, parts: int, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(RESIDENT, form)
    model, state = packed(kind, act_bits, parts)
    assert set(state.layout.parts.values()) == ({parts} if parts > 1 else set())
    up, down = loaders(model, state)
    assert up.tensors() == ["row_scale", "words"]
    for loader, parameter in ((up, "gate_up_proj"), (down, "down_proj")):
        fill(loader, parameter, model.state_dict())
        loader.finish()
    assert {linear.resident for linear in (*up.matrices, *down.matrices)} == {form}  # type: ignore[attr-defined]
    x, choice, weights = gaussian(TOKENS, HIDDEN), torch.rand(TOKENS, EXPERTS).topk(2).indices, torch.rand(TOKENS, 2)
    with torch.inference_mode():
        expected = experts_in(model)[1](x, choice, weights)
        y = CodedExperts(up.matrices, down.matrices, ACTIVATIONS["silu"]).routed(x, weights, choice.int())
    torch.testing.assert_close(y, expected, atol=1e-4, rtol=1e-4)


def test_what_was_not_loaded_or_has_another_form_is_refused() -> None:
    model, state = packed("mixtral", 16)
    up, down = loaders(model, state)
    tensors = dict(model.state_dict())
    last = next(name for name in tensors if name.endswith(f"down_proj.expert_{EXPERTS - 1}.row_scale"))
    fill(down, "down_proj", {name: tensor for name, tensor in tensors.items() if name != last})
    with pytest.raises(NestQuantError, match=last):
        down.finish()
    with pytest.raises(NestQuantError, match="one of"):
        up.load("words", 0, torch.zeros(3, 3, dtype=torch.uint8))
    with pytest.raises(NestQuantError, match="one of"):
        up.load("row_scale", 0, torch.zeros(2 * SIZES["intermediate_size"]))


@pytest.mark.parametrize(
    ("name", "function"), [("silu", F.silu), ("gelu", F.gelu), ("gelu_tanh", lambda x: F.gelu(x, approximate="tanh"))]
)
def test_activations(name: str, function: Any) -> None:
    x = gaussian(3, 8)
    torch.testing.assert_close(ACTIVATIONS[name](x), function(x[:, :4]) * x[:, 4:])
    torch.testing.assert_close(ACTIVATIONS[f"{name}_no_mul"](x), function(x))
    torch.testing.assert_close(ACTIVATIONS["relu2_no_mul"](x), x.clamp(min=0) ** 2)
