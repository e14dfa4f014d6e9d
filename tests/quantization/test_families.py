"""Every family from end to end: quantized, written, loaded by transformers, scored and made to generate."""

from pathlib import Path
from typing import Any

import pytest
import torch

from nestquant_cli.modules.attach import quantized_linears
from nestquant_cli.modules.cache import is_packed
from tests.families import CONFIGS, WINDOW, load, logits, make_model, pack, random_ids, relative_error, save_model

TOKENS = 2 * WINDOW
HEAD_BYTES = 16 // 8 * 4 + 2  # of a head vector of 16 entries at 4 bits, and its scale
SLIDING = {"mistral": (True, True), "gemma2": (True, False) * 2, "gemma3": (True, False) * 2}


@pytest.fixture(scope="module", params=CONFIGS)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_folder: Path) -> Path:
    return save_model(make_model(family), tiny_tokenizer_folder, tmp_path_factory.mktemp(family) / "model")


@pytest.fixture(scope="module")
def packed(folder: Path, tiny_text_file: Path) -> Any:
    """At 4 bits."""
    return load(pack(folder, tiny_text_file, folder.parent / "w4a4kv4"))


def generate(packed: Any, **settings: Any) -> Any:
    """Eight tokens for a batch of two, the first of which is padded on the left by four."""
    ids = random_ids(2, TOKENS)
    ids[0, :4] = packed.config.pad_token_id
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    return packed.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=8,
        min_new_tokens=8,
        do_sample=False,
        return_dict_in_generate=True,
        **settings,
    )


def test_eight_bits_are_close_to_the_original(family: str, folder: Path, tiny_text_file: Path) -> None:
    settings: dict[str, Any] = dict.fromkeys(("weight_bits", "act_bits", "kv_bits"), 8)
    model = load(pack(folder, tiny_text_file, folder.parent / "w8a8kv8", **settings))
    ids = random_ids(2, TOKENS)
    assert relative_error(logits(model, ids), logits(make_model(family), ids)) < 0.05


def test_four_bits_quantize_every_matrix_and_are_no_random_model(family: str, packed: Any) -> None:
    original, ids = make_model(family), random_ids(2, TOKENS)
    dense = [name for name, module in original.named_modules() if isinstance(module, torch.nn.Linear)]
    assert sorted(quantized_linears(packed)) == sorted(set(dense) - {"lm_head", "embed_out"})
    found, expected = logits(packed, ids), logits(original, ids)
    assert torch.isfinite(found).all()
    assert relative_error(found, expected) < 0.9


def test_generation_keeps_the_cache_packed(family: str, packed: Any) -> None:
    for settings in ({}, {"num_beams": 2}):
        found = generate(packed, **settings)
        assert found.sequences.shape == (2, TOKENS + 8)
        assert is_packed(found.past_key_values)
        sliding = SLIDING.get(family, (False, False))
        assert [layer.is_sliding for layer in found.past_key_values.layers] == list(sliding)
        for layer, slides in zip(found.past_key_values.layers, sliding, strict=True):
            held = WINDOW - 1 if slides else TOKENS + 7
            heads = getattr(packed.config, "num_key_value_heads", packed.config.num_attention_heads)
            rows = 2 * settings.get("num_beams", 1)
            assert layer.keys.dtype == layer.values.dtype == torch.uint8
            assert layer.keys.shape == layer.values.shape == (rows, heads, held, HEAD_BYTES)


def test_padding_on_the_left_changes_nothing(packed: Any) -> None:
    padded = generate(packed).sequences[0, 4:]
    alone = packed.generate(padded[None, : TOKENS - 4], max_new_tokens=8, min_new_tokens=8, do_sample=False)[0]
    assert torch.equal(alone[: TOKENS - 4], padded[: TOKENS - 4])
    assert int((alone == padded).sum()) >= TOKENS - 4 + 1  # a rounding may fall otherwise after some tokens


def test_decoding_with_the_cache_follows_the_full_forward(packed: Any) -> None:
    ids = random_ids(2, TOKENS)
    outputs, cache = [], None
    with torch.inference_mode():
        for start, end in ((0, TOKENS - 3), (TOKENS - 3, TOKENS - 1), (TOKENS - 1, TOKENS)):
            step = packed(input_ids=ids[:, start:end], past_key_values=cache, use_cache=True)
            cache = step.past_key_values
            outputs.append(step.logits)
    assert relative_error(torch.cat(outputs, 1), logits(packed, ids)) < 0.1
