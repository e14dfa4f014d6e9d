"""Experts in vLLM give what they give in transformers."""

from pathlib import Path
from typing import Any

import pytest
from transformers import Glm4MoeConfig, GptOssConfig, MixtralConfig, PretrainedConfig, Qwen3MoeConfig

from nestquant_cli.integrations.vllm.state import RESIDENT
from tests.families import CONTEXT, VOCABULARY, from_config, pack, random_ids, save_model
from tests.integrations.vllm.serving import compare, needs_vllm, run_engine

pytestmark = needs_vllm

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_hidden_layers": 2,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
CHOSEN = {"num_experts_per_tok": 2, "moe_intermediate_size": 48}
CONFIGS: dict[str, PretrainedConfig] = {
    "mixtral": MixtralConfig(**SIZES, num_local_experts=6),  # other names on the Hub than in its class
    "qwen3_moe": Qwen3MoeConfig(**SIZES, **CHOSEN, num_experts=8),
    "glm4_moe": Glm4MoeConfig(**SIZES, **CHOSEN, n_routed_experts=8, n_shared_experts=1, first_k_dense_replace=1),
    "gpt_oss": GptOssConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2),
}


def checkpoint(kind: str, act_bits: float, text: Path, tokenizer: Path, folder: Path) -> Path:
    original = save_model(from_config(CONFIGS[kind]), tokenizer, folder / "model")
    return pack(original, text, folder / "packed", weight_bits=4, act_bits=act_bits, kv_bits=16)


@pytest.mark.parametrize(
    ("kind", "form", "eager"),
    [
        ("mixtral", "int8", True),
        ("mixtral", "packed", False),
        ("qwen3_moe", "packed", True),
        ("qwen3_moe", "int8", False),
        ("glm4_moe", "int8", True),
    ],
)
def test_they_say_what_they_say_in_transformers(
    kind: str, form: str, eager: bool, tiny_text_file: Path, tiny_tokenizer_folder: Path, tmp_path: Path
) -> None:
    folder = checkpoint(kind, 16, tiny_text_file, tiny_tokenizer_folder, tmp_path)
    compared = compare(folder, {RESIDENT: form}, enforce_eager=eager)
    assert compared.differences.max() < 1e-3
    assert compared.same == 1


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
def test_coded_activations(kind: str, tiny_text_file: Path, tiny_tokenizer_folder: Path, tmp_path: Path) -> None:
    """A last bit of the input turns a rounding now and then, and all later tokens of that prompt see it.

    So there are many short prompts. Most places differ by nothing.
    """
    asked = [random_ids(1, 10, seed=seed)[0].tolist() for seed in range(16)]
    folder = checkpoint(kind, 8, tiny_text_file, tiny_tokenizer_folder, tmp_path)
    compared = compare(folder, asked=asked)
    assert compared.differences.median() < 1e-3
    assert compared.differences.mean() < 0.05


@pytest.mark.parametrize("kind", ["mixtral", "glm4_moe"])
def test_two_processes_with_some_experts_each(
    kind: str, tiny_text_file: Path, tiny_tokenizer_folder: Path, tmp_path: Path
) -> None:
    folder = checkpoint(kind, 16, tiny_text_file, tiny_tokenizer_folder, tmp_path)
    compared = compare(folder, tensor_parallel_size=2, enable_expert_parallel=True)
    assert compared.differences.max() < 1e-3
    assert compared.same == 1


def test_experts_split_among_processes_are_refused(
    tiny_text_file: Path, tiny_tokenizer_folder: Path, tmp_path: Path
) -> None:
    folder = checkpoint("mixtral", 16, tiny_text_file, tiny_tokenizer_folder, tmp_path)
    done = run_engine(folder, {}, tensor_parallel_size=2)
    assert done.returncode != 0
    assert "add --enable-expert-parallel" in done.stdout + done.stderr


def test_experts_of_another_kind_are_refused(tiny_text_file: Path, tiny_tokenizer_folder: Path, tmp_path: Path) -> None:
    done = run_engine(checkpoint("gpt_oss", 16, tiny_text_file, tiny_tokenizer_folder, tmp_path), {})
    assert done.returncode != 0
    assert "experts of this kind are not served in vLLM" in done.stderr.splitlines()[-1]
