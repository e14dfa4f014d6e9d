"""Models whose layers keep other states than keys and values, and GPT-2, from end to end at 8 bits."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from nestquant_cli import NestQuantConfig
from nestquant_cli.checkpoint.inspect import inspect
from nestquant_cli.checkpoint.verify import verify
from nestquant_cli.modules.attach import quantized_linears
from nestquant_cli.modules.packed_layers import Packed, can_pack
from nestquant_cli.storage.files import read_json
from tests.families import from_config, load, logits, pack, random_ids, relative_error, save_model
from tests.hybrids import HYBRIDS

IDS = random_ids(2, 40)
EIGHT: dict[str, Any] = dict.fromkeys(("weight_bits", "act_bits", "kv_bits"), 8)
ERRORS = {"qwen3_5": 0.1}  # of the logits; weights with noise of 0.6 %, as of 8 bits, give 0.06
SMALL: dict[str, set[str]] = {
    "gpt2": set(),
    "mamba2": {"mixer.conv1d.weight"},
    "qwen3_5": {"linear_attn.conv1d.weight"},
    "lfm2": {"conv.conv.weight"},
    "recurrent_gemma": {"temporal_block.conv_1d.weight", "temporal_block.rg_lru.input_gate_weight"},
    "falcon_h1": {"mamba.conv1d.weight"},
    "zamba2": {"mamba.conv1d.weight", "mamba_decoder.mamba.conv1d.weight"},
}


@pytest.fixture(scope="module", params=HYBRIDS)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_folder: Path) -> Path:
    model = from_config(HYBRIDS[family]())
    return save_model(model, tiny_tokenizer_folder, tmp_path_factory.mktemp(family) / "model")


@pytest.fixture(scope="module")
def checkpoint(folder: Path, tiny_text_file: Path) -> Path:
    return pack(folder, tiny_text_file, folder.parent / "packed", **EIGHT)


@pytest.fixture(scope="module")
def packed(checkpoint: Path) -> Any:
    return load(checkpoint)


def test_it_is_close_to_the_original(family: str, folder: Path, packed: Any) -> None:
    assert relative_error(logits(packed, IDS), logits(load(folder), IDS)) < ERRORS.get(family, 0.05)
    assert len(quantized_linears(packed)) >= 2 * 2
    with torch.inference_mode():
        assert torch.equal(packed(IDS, use_cache=False).logits, logits(packed, IDS))


def test_layers_that_keep_keys_and_values_keep_them_packed(family: str, packed: Any) -> None:
    cache = DynamicCache(config=packed.config)
    coded = [can_pack(layer) for layer in cache.layers]
    name = "cache_params" if family == "mamba2" else "past_key_values"
    found = []
    with torch.inference_mode():
        for start, end in ((0, 30), *((token, token + 1) for token in range(30, 40))):
            found.append(packed(IDS[:, start:end], **{name: cache}, use_cache=True).logits)
    assert relative_error(torch.cat(found, 1), logits(packed, IDS)) < 0.05
    assert [isinstance(layer, Packed) for layer in cache.layers] == coded
    layout = packed.config.quantization_config.layout
    assert [each is not None for each in layout["cache"]] == (coded if any(coded) else [])
    assert (layout["format_version"] == 5) == (any(coded) and not all(coded))


def test_what_stays_is_counted(family: str, checkpoint: Path) -> None:
    verify(checkpoint).refuse()
    found = inspect(checkpoint).staying
    assert {kind.name for kind in found.matrices} >= SMALL[family]
    assert found.share < 0.1
    report = read_json(checkpoint / "quantization_report.json")
    if found.matrices:
        written = {each["name"]: each["layers"] for each in report["staying"]["matrices"]}
        assert written == {kind.name: kind.layers for kind in found.matrices}
        assert report["staying"]["share"] == pytest.approx(found.share)
    assert report["bits"]["kv"] == (16 if family == "mamba2" else 8)


def test_it_is_quantized_while_it_is_loaded(family: str, folder: Path) -> None:
    model = load(folder, quantization_config=NestQuantConfig(bits=8, act_bits=8, kv_bits=8))
    assert relative_error(logits(model, IDS), logits(load(folder), IDS)) < ERRORS.get(family, 0.05)
