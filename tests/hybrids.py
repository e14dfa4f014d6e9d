"""Tiny random models whose layers keep other states than keys and values, one of each structure, and GPT-2's Conv1D."""

from collections.abc import Callable
from typing import Any

from transformers import (
    FalconH1Config,
    GPT2Config,
    Lfm2Config,
    Mamba2Config,
    PretrainedConfig,
    Qwen3_5TextConfig,
    RecurrentGemmaConfig,
    Zamba2Config,
)

from tests.families import CONTEXT, VOCABULARY, WINDOW

_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "initializer_range": 0.1,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
_ATTENTION: dict[str, Any] = _SIZES | {
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 128,
    "max_position_embeddings": CONTEXT,
}
_MAMBA: dict[str, Any] = {"mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_ssm": 128, "mamba_d_state": 16}
_LINEAR: dict[str, Any] = {
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "layer_types": ["linear_attention", "full_attention"] * 2,
}

HYBRIDS: dict[str, Callable[[], PretrainedConfig]] = {
    "gpt2": lambda: GPT2Config(
        **{key: _SIZES[key] for key in ("vocab_size", "initializer_range", "bos_token_id", "eos_token_id")},
        n_embd=64,
        n_layer=2,
        n_head=4,
        n_positions=CONTEXT,
        pad_token_id=1,
    ),
    "mamba2": lambda: Mamba2Config(**_SIZES, num_heads=4, head_dim=32, state_size=16, n_groups=1, chunk_size=16),
    "qwen3_5": lambda: Qwen3_5TextConfig(**_ATTENTION | _LINEAR | {"num_hidden_layers": 4}),
    "lfm2": lambda: Lfm2Config(**_ATTENTION | {"layer_types": ["conv", "full_attention"]}),
    "recurrent_gemma": lambda: RecurrentGemmaConfig(
        **_ATTENTION, lru_width=64, attention_window_size=WINDOW, block_types=["recurrent", "attention"]
    ),
    "falcon_h1": lambda: FalconH1Config(**_ATTENTION | _MAMBA | {"mamba_n_groups": 1, "mamba_chunk_size": 16}),
    "zamba2": lambda: Zamba2Config(
        **_ATTENTION | {"num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid"] * 2, "num_mem_blocks": 1},
        mamba_d_state=16,
        mamba_headdim=32,
        n_mamba_heads=4,
        mamba_ngroups=1,
        chunk_size=16,
        adapter_rank=8,
    ),
}
