"""A packed checkpoint in the hands of transformers."""

import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, pipeline

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.checkpoint.manifest import MANIFEST, describe_files
from nestquant_cli.integrations.transformers.quantizer import NestQuantConfig
from nestquant_cli.modules.attach import quantized_linears
from nestquant_cli.storage.files import read_json, write_json
from tests.families import load, logits, make_model, pack, random_ids, relative_error, save_model

IDS = random_ids(2, 20)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_folder: Path, tiny_text_file: Path) -> Path:
    base = tmp_path_factory.mktemp("hf")
    save_model(make_model("gpt_neox"), tiny_tokenizer_folder, base / "model")
    return pack(base / "model", tiny_text_file, base / "packed")


def test_the_configuration_round_trips(folder: Path) -> None:
    section = AutoConfig.from_pretrained(folder).quantization_config
    config = section if isinstance(section, NestQuantConfig) else NestQuantConfig.from_dict(section)
    assert config.to_dict() == read_json(folder / "config.json")["quantization_config"]
    assert config.bits == {"weight": 4.0, "act": 4.0, "kv": 4.0}
    assert config.recipe["samples"] == 4


@pytest.mark.parametrize("name", ["kv_bit", "act_bit", "activation_bits", "sed", "colour"])
def test_a_misspelled_setting_is_refused_with_the_nearest_name(name: str) -> None:
    near = {"kv_bit": "kv_bits", "sed": "seed", "colour": "use one of"}.get(name, "act_bits")
    with pytest.raises(NestQuantError, match=rf"NestQuantConfig has an unknown setting '{name}'.*{near}"):
        NestQuantConfig(bits=4, **{name: 4})
    assert NestQuantConfig(bits=4, quant_method="nestquant").wanted == NestQuantConfig(bits=4).wanted


def test_the_model_stays_packed_in_memory(folder: Path) -> None:
    model = load(folder)
    for name, module in quantized_linears(model).items():
        own = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
        assert set(own) == {"words", "row_scale", "bias"}, name
        assert (own["words"].dtype, own["row_scale"].dtype) == (torch.uint8, torch.int16)
        assert own["words"].nbytes * 8 == 4 * module.in_features * module.out_features


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_it_loads_in_any_dtype(folder: Path, dtype: torch.dtype) -> None:
    model = load(folder, dtype=dtype)
    found = logits(model, IDS)
    assert found.dtype == dtype and model.dtype == dtype
    assert relative_error(found.float(), logits(load(folder), IDS)) < 0.2  # 4-bit activations round otherwise


def test_a_device_map_is_accepted(folder: Path) -> None:
    for placing in ("cpu", "auto", {"": "cpu"}):
        assert torch.equal(logits(load(folder, device_map=placing), IDS), logits(load(folder), IDS))


def test_a_pipeline_takes_the_path(talking_packed: Path) -> None:
    settings: dict[str, Any] = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    write = pipeline("text-generation", model=str(talking_packed), device="cpu")
    found = write("The lattice", return_full_text=False, **settings)[0]["generated_text"]
    ids = write.tokenizer("The lattice", return_tensors="pt").input_ids
    expected = load(talking_packed).generate(ids, attention_mask=torch.ones_like(ids), **settings)[0, ids.shape[1] :]
    assert found == write.tokenizer.decode(expected)


def test_a_loop_of_ones_own_goes_on_with_the_cache_that_it_was_given(talking_packed: Path) -> None:
    model, ids = load(talking_packed), random_ids(2, 12)
    expected = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, min_new_tokens=6)[:, 12:]
    found, new, past = [], ids, None
    with torch.inference_mode():
        for _ in range(6):
            step = model(input_ids=new, past_key_values=past, use_cache=True)
            past, scores = step.past_key_values, step.logits[:, -1]
            scores[:, model.config.eos_token_id] = -torch.inf
            new = scores.argmax(-1, keepdim=True)
            found.append(new)
    assert torch.equal(torch.cat(found, 1), expected)


def test_a_static_cache_is_refused_in_one_line_unless_it_stays_in_16_bits(talking_packed: Path, talking: Path) -> None:
    settings: dict[str, Any] = {"max_new_tokens": 4, "min_new_tokens": 4, "cache_implementation": "static"}
    ids = random_ids(1, 8)
    with pytest.raises(NestQuantError, match="past_key_values is a StaticCache with 16-bit keys and values"):
        load(talking_packed).generate(ids, **settings)
    model = load(talking, quantization_config=NestQuantConfig(bits=4))
    grown = model.generate(ids, **settings | {"cache_implementation": "dynamic"})
    assert torch.equal(model.generate(ids, **settings), grown)


def test_saved_again_it_loads_with_the_same_logits(folder: Path, tmp_path: Path) -> None:
    model = load(folder)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(load(tmp_path), IDS), logits(model, IDS))


@pytest.mark.parametrize("damage", [{"format_version": 9}, {"linears": []}, {"inputs": {}}, {"cache": []}])
def test_a_damaged_layout_is_refused_in_one_sentence(folder: Path, tmp_path: Path, damage: dict[str, Any]) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    config = read_json(tmp_path / "copy" / "config.json")
    config["quantization_config"]["layout"] |= damage
    write_json(tmp_path / "copy" / "config.json", config)
    with pytest.raises(NestQuantError, match=r"config\.json (was altered|is truncated|is too long)"):
        load(tmp_path / "copy")
    (tmp_path / "copy" / "nestquant_manifest.json").unlink()
    if damage == {"cache": []}:
        load(tmp_path / "copy")  # a cache left alone is no damage as such
        return
    with pytest.raises(NestQuantError, match=r"quantize the checkpoint again|quantize again"):
        load(tmp_path / "copy")


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("num_hidden_layers", 10**6, "it has 1000000 layers, the packed parts that it names are 14"),
        ("num_hidden_layers", 1, r"names a quantized matrix model\.layers\.1\."),
        ("num_hidden_layers", -1, "it has -1 layers"),
        ("vocab_size", 10**9, r"asks for [\d,]+ numbers, its files have|of shape .* its config\.json calls for"),
        ("hidden_size", 10**30, "no usable model"),
        ("hidden_size", -64, "no usable model"),
        ("head_dim", 10**12, "names a quantized matrix"),
        ("num_attention_heads", -4, "no usable model|names a quantized matrix"),
    ],
)
@pytest.mark.parametrize("listed", [False, True])
def test_a_hostile_configuration_is_refused_before_anything_is_built(
    tiny_checkpoint: Path, tmp_path: Path, name: str, value: int, told: str, listed: bool
) -> None:
    """By plain from_pretrained, without a manifest or with one that was brought in line."""
    copy = Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))
    write_json(copy / "config.json", read_json(copy / "config.json") | {name: value})
    manifest = read_json(copy / MANIFEST)
    manifest["files"] |= describe_files(copy, ["config.json"])
    write_json(copy / MANIFEST, manifest)
    if not listed:
        (copy / MANIFEST).unlink()
    start = time.monotonic()
    with pytest.raises(NestQuantError, match=told):
        load(copy)
    assert time.monotonic() - start < 10


def test_an_altered_configuration_is_named_before_it_is_used(tiny_checkpoint: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))
    write_json(copy / "config.json", read_json(copy / "config.json") | {"num_hidden_layers": 10**6})
    with pytest.raises(NestQuantError, match=r"config\.json (was altered|is truncated|is too long)"):
        load(copy)
