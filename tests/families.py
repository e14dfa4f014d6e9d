"""Tiny random models of many decoder families: each with what is particular to its family."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3nTextConfig,
    Gemma3TextConfig,
    Gemma4TextConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from nestquant_cli.cli import console, main
from nestquant_cli.models.source import resolve
from nestquant_cli.pipeline.quantize import quantize
from nestquant_cli.pipeline.recipe import Recipe

Outcome = tuple[int, str, str]  # of a command: exit code, standard output, standard error
VOCABULARY = 300  # that of the tiny tokenizer in conftest.py
CONTEXT = 256
WINDOW = 12  # of sliding attention: shorter than the prompts of the tests

_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.1,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
_GATED: dict[str, Any] = _SIZES | {"intermediate_size": 128, "num_key_value_heads": 2}
_SLIDING: dict[str, Any] = {"sliding_window": WINDOW, "head_dim": 16, "query_pre_attn_scalar": 16}
_HALF_ROTARY: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
_ALTERNATING = ["sliding_attention", "full_attention"] * 2


CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: LlamaConfig(**_GATED, attention_bias=True, mlp_bias=True),
    "mistral": lambda: MistralConfig(**_GATED, sliding_window=WINDOW),
    "qwen2": lambda: Qwen2Config(**_GATED, tie_word_embeddings=True),
    "qwen3": lambda: Qwen3Config(**_GATED, head_dim=16),
    "gemma2": lambda: Gemma2Config(**_GATED | _SLIDING | {"num_hidden_layers": 4}),
    "gemma3": lambda: Gemma3TextConfig(
        **_GATED | _SLIDING | {"num_hidden_layers": 4, "layer_types": _ALTERNATING},
    ),
    "phi": lambda: PhiConfig(**_GATED),
    "phi3": lambda: Phi3Config(**_GATED),
    "opt": lambda: OPTConfig(**_SIZES, ffn_dim=128, word_embed_proj_dim=64, init_std=0.1),
    "gpt_neox": lambda: GPTNeoXConfig(**_SIZES, intermediate_size=128, rope_parameters=_HALF_ROTARY),
    "smollm3": lambda: SmolLM3Config(**_GATED, no_rope_layers=[1, 0]),
}


_SHARED: dict[str, Any] = {"num_hidden_layers": 4, "layer_types": _ALTERNATING, "num_kv_shared_layers": 2}
_PER_LAYER: dict[str, Any] = {"hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": VOCABULARY}
# Families whose layers are given more than hidden states of the text, or hand on more.
MORE_CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "gemma3n": lambda: Gemma3nTextConfig(
        **_GATED | _SLIDING | _SHARED | _PER_LAYER | {"intermediate_size": [128] * 4, "laurel_rank": 8},
        activation_sparsity_pattern=[0.5, 0.5, 0.0, 0.0],
    ),
    "gemma4": lambda: Gemma4TextConfig(
        **_GATED | _SLIDING | _SHARED | _PER_LAYER, use_double_wide_mlp=True, global_head_dim=32
    ),
}
ALL_CONFIGS = CONFIGS | MORE_CONFIGS


def make_model(family: str, seed: int = 0) -> PreTrainedModel:
    """A model with random weights, biases included, in evaluation mode."""
    return from_config(ALL_CONFIGS[family](), seed)


def from_config(config: PretrainedConfig, seed: int = 0) -> PreTrainedModel:
    """The same from any configuration."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith(("bias", "output_scale")):
                    parameter.normal_(std=0.1)
    return model.eval()


def save_model(model: PreTrainedModel, tokenizer_folder: Path, folder: Path) -> Path:
    """A Hugging Face folder with the tiny tokenizer."""
    model.save_pretrained(folder)
    shutil.copytree(tokenizer_folder, folder, dirs_exist_ok=True)
    return folder


def pack(model_folder: Path, text: Path, output: Path, **settings: Any) -> Path:
    """Quantizes a model folder on four windows of 64 tokens; `settings` are of the recipe or of the pipeline."""
    run = {name: settings.pop(name) for name in ("calibration", "resume", "explicit", "budget") if name in settings}
    chosen: dict[str, Any] = {"dataset": str(text), "samples": 4, "seqlen": 64} | settings
    quantize(resolve(str(model_folder)), Recipe(**chosen), output, "cpu", **run)
    return output


def load(folder: Path, **settings: Any) -> Any:
    """A model by the way of every user of transformers."""
    return AutoModelForCausalLM.from_pretrained(folder, **settings)


def random_ids(rows: int, tokens: int, seed: int = 0) -> Tensor:
    """Token ids (rows, tokens) int64 without the special ones."""
    return torch.randint(2, VOCABULARY, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    """Independent entries of unit variance, float32."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def logits(model: Any, ids: Tensor) -> Tensor:
    """Logits (rows, tokens, vocabulary) of a plain call."""
    with torch.no_grad():
        result: Tensor = model(input_ids=ids).logits
    return result


def relative_error(found: Tensor, expected: Tensor) -> float:
    """‖found − expected‖ / ‖expected‖."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def in_process(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """What runs the command line in this process, whose log and warnings it leaves alone."""
    monkeypatch.setattr(console, "configure", lambda debug, quiet, form: None)

    def run(*arguments: object) -> Outcome:
        with pytest.raises(SystemExit) as leaving:
            main.main([str(argument) for argument in arguments])
        assert isinstance(leaving.value.code, int)
        return leaving.value.code, *capfd.readouterr()

    return run


def error_line(stderr: str) -> str:
    """The one line that starts with "error:", the last of standard error (log lines may come before it)."""
    lines = stderr.strip().splitlines()
    assert [line for line in lines if line.startswith("error:")] == lines[-1:], stderr
    assert "Traceback" not in stderr
    return lines[-1]
