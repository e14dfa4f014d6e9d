"""Tiny models of each kind of conversion between the names and forms of files and those of the model."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    Ernie4_5_MoeConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    GptOssConfig,
    GraniteMoeConfig,
    Llama4TextConfig,
    MixtralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen3MoeConfig,
)

from tests.families import VOCABULARY

SIZES: dict[str, Any] = {"vocab_size": VOCABULARY, "num_hidden_layers": 2, "num_attention_heads": 2}
GATED: dict[str, Any] = SIZES | {"hidden_size": 16, "intermediate_size": 24, "num_key_value_heads": 2, "head_dim": 8}
_LATENT: dict[str, Any] = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8}

CONVERTED: dict[str, Callable[[], PretrainedConfig]] = {
    "gpt2": lambda: GPT2Config(vocab_size=VOCABULARY, n_layer=2, n_embd=16, n_head=2),  # Conv1D
    "gptj": lambda: GPTJConfig(vocab_size=VOCABULARY, n_layer=2, n_embd=16, n_head=2, rotary_dim=4),  # computed buffers
    "gpt_neox": lambda: GPTNeoXConfig(**SIZES, hidden_size=16, intermediate_size=24),  # a name
    "mixtral": lambda: MixtralConfig(**GATED, num_local_experts=4),  # experts one by one
    "qwen3_moe": lambda: Qwen3MoeConfig(**GATED, num_experts=3, num_experts_per_tok=2, moe_intermediate_size=24),
    "granitemoe": lambda: GraniteMoeConfig(**GATED, num_local_experts=4),  # 3-D parameters under other names
    "gpt_oss": lambda: GptOssConfig(**GATED, num_local_experts=4, num_experts_per_tok=2),  # transposed
    "llama4": lambda: Llama4TextConfig(**GATED, num_local_experts=4, intermediate_size_mlp=32, moe_layers=[0, 1]),
    "deepseek_v3": lambda: DeepseekV3Config(
        **{**GATED, "head_dim": 8} | _LATENT, v_head_dim=8, n_routed_experts=8, n_group=2, topk_group=1,
        num_experts_per_tok=2, moe_intermediate_size=24, first_k_dense_replace=1,
    ),
    "ernie4_5_moe": lambda: Ernie4_5_MoeConfig(
        **GATED, moe_num_experts=4, moe_k=2, moe_intermediate_size=24, moe_layer_start_index=1
    ),
}  # fmt: skip


def converted(kind: str) -> PreTrainedModel:
    """A model with random weights in bfloat16 but for what its class keeps in float32."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(CONVERTED[kind]())
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and name not in model.all_tied_weights_keys:
                nn.init.normal_(tensor, std=0.3)
    return model.bfloat16().eval()
