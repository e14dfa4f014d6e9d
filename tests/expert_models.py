"""Tiny random models with experts: what differs between families is how they route, and how they keep matrices."""

from collections.abc import Callable
from typing import Any

from transformers import (
    Glm4MoeConfig,
    GptOssConfig,
    Llama4TextConfig,
    MixtralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2MoeConfig,
)

from tests.families import CONTEXT, VOCABULARY, from_config

_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_hidden_layers": 2,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.1,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}

CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "mixtral": lambda: MixtralConfig(**_SIZES, num_local_experts=4),
    "qwen2_moe": lambda: Qwen2MoeConfig(
        **_SIZES, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=48, shared_expert_intermediate_size=40
    ),
    "gpt_oss": lambda: GptOssConfig(**_SIZES, num_local_experts=4, num_experts_per_tok=2),
    "llama4": lambda: Llama4TextConfig(**_SIZES, num_local_experts=4, intermediate_size_mlp=96, moe_layers=[0, 1]),
    "glm4_moe": lambda: Glm4MoeConfig(
        **_SIZES, n_routed_experts=8, num_experts_per_tok=2, moe_intermediate_size=32, n_group=4, topk_group=2
    ),
}


def make_experts(family: str, seed: int = 0) -> PreTrainedModel:
    """A model with random weights in evaluation mode, all of its experts different."""
    return from_config(CONFIGS[family](), seed)
