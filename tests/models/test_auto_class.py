"""The Auto class for the class that a configuration names."""

from typing import Any

import pytest
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    Gemma3Config,
    LlamaConfig,
    Mistral3Config,
    Qwen2AudioConfig,
    Qwen3_5Config,
    ViTConfig,
)

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.models.auto_class import auto_class

CASES = [
    (LlamaConfig(), AutoModelForCausalLM),
    (LlamaConfig(architectures=["LlamaModel"]), AutoModelForCausalLM),
    (Gemma3Config(architectures=["Gemma3ForConditionalGeneration"]), AutoModelForCausalLM),
    (Mistral3Config(), AutoModelForImageTextToText),
    (Qwen3_5Config(architectures=["Qwen3_5ForConditionalGeneration"]), AutoModelForImageTextToText),
    (Qwen3_5Config(architectures=["Qwen3_5ForCausalLM"]), AutoModelForCausalLM),
    (Qwen3_5Config(), AutoModelForCausalLM),
    (Qwen2AudioConfig(), AutoModelForMultimodalLM),
]


@pytest.mark.parametrize(("config", "auto"), CASES, ids=lambda case: getattr(case, "model_type", ""))
def test_the_class_that_architectures_names_decides(config: Any, auto: Any) -> None:
    assert auto_class(config) is auto


def test_what_generates_no_text_is_refused() -> None:
    with pytest.raises(NestQuantError, match="no model that generates text for the configuration of vit"):
        auto_class(ViTConfig())
