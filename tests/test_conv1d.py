"""GPT-2's Conv1D, a Linear with a transposed weight, in everything that is done with Linears."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers.pytorch_utils import Conv1D

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.checkpoint.verify import verify
from nestquant_cli.export.export import export
from nestquant_cli.models.source import resolve
from nestquant_cli.models.structure import linears, open_decoder
from nestquant_cli.modules.attach import quantized_linears
from nestquant_cli.modules.resident import set_resident
from nestquant_cli.tuning.held_out import TuneText
from nestquant_cli.tuning.settings import TuneSettings
from nestquant_cli.tuning.tune import tune
from tests.families import from_config, load, logits, pack, random_ids, relative_error, save_model
from tests.hybrids import HYBRIDS

IDS = random_ids(2, 24)
NAMES = [
    f"transformer.h.{layer}.{name}"
    for layer in (0, 1)
    for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_folder: Path) -> Path:
    model = from_config(HYBRIDS["gpt2"]())
    return save_model(model, tiny_tokenizer_folder, tmp_path_factory.mktemp("gpt2") / "model")


@pytest.fixture(scope="module")
def checkpoint(folder: Path, tiny_text_file: Path) -> Path:
    return pack(folder, tiny_text_file, folder.parent / "packed")


def test_a_conv1d_becomes_a_linear_that_shares_its_memory() -> None:
    model = from_config(HYBRIDS["gpt2"]())
    expected, weight = logits(model, IDS), model.transformer.h[0].attn.c_attn.weight
    decoder = open_decoder(model)
    assert list(linears(decoder.layers[0])) == [name.removeprefix("transformer.h.0.") for name in NAMES[:4]]
    assert decoder.layers[0].attn.c_attn.weight.data_ptr() == weight.data_ptr()  # type: ignore[union-attr]
    assert relative_error(logits(model, IDS), expected) < 1e-6


def test_every_matrix_is_packed_and_the_checkpoint_is_sound(folder: Path, checkpoint: Path) -> None:
    model = load(checkpoint)
    assert sorted(quantized_linears(model)) == sorted(NAMES)
    assert not any(isinstance(module, Conv1D) for module in model.modules())
    assert relative_error(logits(model, IDS), logits(load(folder), IDS)) < 0.5
    assert verify(checkpoint, str(folder)).problems == []
    assert model.lm_head.weight is model.transformer.wte.weight


@pytest.mark.parametrize("settings", [{"weight_bits": 16, "kv_bits": 16}, {"act_bits": 16, "kv_bits": 16}])
def test_parts_in_sixteen_bits(settings: dict[str, Any], folder: Path, tiny_text_file: Path, tmp_path: Path) -> None:
    model = load(pack(folder, tiny_text_file, tmp_path / "packed", **settings))
    assert 0 < relative_error(logits(model, IDS), logits(load(folder), IDS)) < 0.5
    assert verify(tmp_path / "packed", str(folder)).problems == []
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(logits(load(tmp_path / "saved"), IDS), logits(model, IDS))


def test_mixed_rates(folder: Path, tiny_text_file: Path, tmp_path: Path) -> None:
    model = load(pack(folder, tiny_text_file, tmp_path / "packed", weight_bits=3.5, allocation="mixed"))
    assert verify(tmp_path / "packed", str(folder)).problems == []
    assert relative_error(logits(model, IDS), logits(load(folder), IDS)) < 0.7


@pytest.mark.parametrize("form", ["packed", "int8"])
def test_it_is_saved_as_a_whole_checkpoint(form: str, checkpoint: Path, tmp_path: Path) -> None:
    model = load(checkpoint)
    set_resident(model, form)
    model.save_pretrained(tmp_path)
    verify(tmp_path).refuse()
    assert torch.equal(logits(load(tmp_path), IDS), logits(load(checkpoint), IDS))


def test_adapters_are_put_on_all_of_them(checkpoint: Path, tmp_path: Path) -> None:
    settings = LoraConfig(r=4, target_modules=["c_attn", "c_proj", "c_fc"], init_lora_weights=False)
    with torch.random.fork_rng():
        model: Any = get_peft_model(load(checkpoint), settings)
    trained = [name for name, each in model.named_parameters() if each.requires_grad]
    assert len(trained) == 2 * len(NAMES)
    model(input_ids=IDS, labels=IDS).loss.backward()
    assert all(each.grad is not None for each in model.parameters() if each.requires_grad)
    model.save_pretrained(tmp_path)
    again: Any = PeftModel.from_pretrained(load(checkpoint), tmp_path)
    assert torch.equal(logits(again, IDS), logits(model, IDS))
    assert relative_error(logits(model, IDS), logits(load(checkpoint), IDS)) > 1e-3


def test_it_is_tuned(folder: Path, checkpoint: Path, tiny_text_file: Path, tmp_path: Path) -> None:
    settings = TuneSettings(steps=4, seqlen=32, rate=0.003, held_out=2, checks=1)
    report = tune(checkpoint, resolve(str(folder)), settings, tmp_path / "tuned", "cpu", TuneText(str(tiny_text_file)))
    assert report["tuning"]["loss_after"] <= report["tuning"]["loss_before"]
    assert verify(tmp_path / "tuned", str(folder)).problems == []


def test_an_export_is_refused(folder: Path, tiny_text_file: Path, tmp_path: Path) -> None:
    pack(folder, tiny_text_file, tmp_path / "packed", act_bits=16, kv_bits=16)
    with pytest.raises(NestQuantError, match=r"c_attn is no nn\.Linear of GPT2LMHeadModel"):
        export(tmp_path / "packed", tmp_path / "export")


def test_generation_with_beams_a_copy_and_a_draft(checkpoint: Path) -> None:
    model = copy.deepcopy(load(checkpoint))
    fixed: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 1}
    plain = model.generate(IDS, **fixed)
    assert torch.equal(model.generate(IDS, use_cache=False, **fixed), plain)
    assert model.generate(IDS, num_beams=2, **fixed).shape == plain.shape
    assert model.generate(IDS[:1], prompt_lookup_num_tokens=2, **fixed).shape == (1, 29)
