"""Where transformers cannot generate with a model, one line says why; our own errors stay what they are."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import ProphetNetConfig

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.generation.generator import load_generator
from nestquant_cli.generation.sampling import Sampling
from nestquant_cli.models.source import resolve
from tests.families import from_config, load, random_ids, save_model

SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "num_decoder_layers": 2,
    "num_decoder_attention_heads": 4,
}
IDS = random_ids(1, 12)


def generator_of(folder: Path) -> Any:
    return load_generator(resolve(str(folder)), Sampling(max_new_tokens=4), "packed", "float32", "cpu")


def test_a_model_that_transformers_cannot_continue_is_one_line_whose_remedy_works(
    tiny_tokenizer_folder: Path, tmp_path: Path
) -> None:
    # ProphetNet counts positions from its padding token on and takes it for 0 in every step with a cache
    config = ProphetNetConfig(**SIZES, decoder_ffn_dim=128, is_encoder_decoder=False, is_decoder=True, pad_token_id=1)
    folder = save_model(from_config(config), tiny_tokenizer_folder, tmp_path / "model")
    with pytest.raises(NestQuantError, match=r"^transformers' ProphetNetForCausalLM cannot continue .*position_ids"):
        generator_of(folder).generate(IDS[0].tolist())
    assert load(folder).generate(IDS, use_cache=False, max_new_tokens=4, min_new_tokens=4).shape == (1, 16)


def raising(error: Exception) -> Callable[..., None]:
    def raises(*_: Any, **__: Any) -> None:
        raise error

    return raises


@pytest.mark.parametrize("error", [MemoryError("all"), torch.OutOfMemoryError("all"), BrokenPipeError("closed")])
def test_what_the_system_lacks_is_left_alone(error: Exception, talking: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = generator_of(talking)
    monkeypatch.setattr(generator.model, "forward", raising(error))
    with pytest.raises(type(error)):
        generator.generate(IDS[0].tolist())


def test_an_error_of_this_package_is_not_blamed_on_transformers(
    talking_packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nestquant_cli.modules.linear.multiply", raising(ValueError("ours")))
    with pytest.raises(ValueError, match="ours"):
        generator_of(talking_packed).generate(IDS[0].tolist())
