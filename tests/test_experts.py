"""Every command on a model with experts: tune, mixed rates, report, adapters, and quantization while it loads."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from nestquant_cli import NestQuantConfig
from nestquant_cli.modules.attach import quantized_linears
from tests.expert_models import make_experts
from tests.families import Outcome, in_process, load, logits, pack, random_ids, relative_error, save_model

IDS = random_ids(2, 24)


@pytest.fixture
def nestquant(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    return in_process(capfd, monkeypatch)


@pytest.fixture(scope="module")
def original(tiny_tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(make_experts("mixtral"), tiny_tokenizer_folder, tmp_path_factory.mktemp("experts") / "model")


@pytest.fixture(scope="module")
def packed(original: Path, tiny_text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(original, tiny_text_file, tmp_path_factory.mktemp("packed") / "w4a4kv4")


def test_a_tuned_checkpoint_of_experts_is_sound_and_reported(
    nestquant: Callable[..., Outcome], original: Path, packed: Path, tiny_text_file: Path, tmp_path: Path
) -> None:
    settings = ["--steps", 4, "--seqlen", 64, "--dataset", tiny_text_file, "--output", tmp_path / "tuned"]
    assert nestquant("tune", packed, "--model", original, *settings)[0] == 0
    assert nestquant("verify", tmp_path / "tuned", "--original", original)[0] == 0
    assert nestquant("report", tmp_path / "tuned", "--output", tmp_path / "report")[0] == 0
    assert "<td>gate_up_proj</td>" in (tmp_path / "report" / "report.html").read_text()
    tuning = json.loads((tmp_path / "tuned" / "quantization_report.json").read_text())["tuning"]
    assert tuning


def test_mixed_rates_reach_experts(
    nestquant: Callable[..., Outcome], original: Path, tiny_text_file: Path, tmp_path: Path
) -> None:
    mixed = ["--weight-bits", 3.5, "--allocation", "mixed"]
    run = ["--dataset", tiny_text_file, "--samples", 4, "--seqlen", 64, "--output", tmp_path / "mixed"]
    assert nestquant("quantize", original, *mixed, *run)[0] == 0
    assert nestquant("verify", tmp_path / "mixed")[0] == 0
    assert relative_error(logits(load(tmp_path / "mixed"), IDS), logits(load(original), IDS)) < 0.5


def test_experts_are_quantized_while_they_load_and_saved_again(original: Path, tmp_path: Path) -> None:
    model = load(original, quantization_config=NestQuantConfig(bits=4, act_bits=4, kv_bits=4))
    experts = [name for name in quantized_linears(model) if ".experts." in name]
    assert len(experts) == 2 * 2 * 4
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(logits(load(tmp_path / "saved"), IDS), logits(model, IDS))


@pytest.mark.parametrize("target", ["all-linear", r".*experts.*expert_\d+$", ["q_proj", "v_proj"]])
def test_adapters_learn_on_experts_and_are_loaded_again(packed: Path, tmp_path: Path, target: Any) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = get_peft_model(load(packed), LoraConfig(r=4, target_modules=target, bias="none"))
    expected = logits(load(packed), IDS)
    assert torch.equal(logits(model, IDS), expected)  # a fresh adapter adds nothing
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    assert any(".experts." in name for name in trained) == (not isinstance(target, list))
    descent = torch.optim.AdamW(trained.values(), lr=1e-2)
    model(input_ids=IDS, labels=IDS).loss.backward()
    descent.step()
    assert not torch.equal(logits(model, IDS), expected)
    model.save_pretrained(tmp_path)
    again: Any = PeftModel.from_pretrained(load(packed), tmp_path)
    assert torch.equal(logits(again, IDS), logits(model, IDS))
