"""PEFT's LoRA on top of a packed model, whose own weights stay frozen."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from nestquant_cli import NestQuantConfig
from tests.families import gaussian, load, logits, make_model, random_ids, save_model

IDS = random_ids(2, 24)


def test_lora_learns_biases_with_a_compiler_as_without(tmp_path: Path, tiny_tokenizer_folder: Path) -> None:
    folder = save_model(make_model("llama"), tiny_tokenizer_folder, tmp_path / "model")
    quantized = load(folder, quantization_config=NestQuantConfig(bits=4, act_bits=4, kv_bits=4))
    model: Any = get_peft_model(quantized, LoraConfig(r=4, target_modules="all-linear", bias="all"))
    biases = {name for name, each in model.named_parameters() if name.endswith("bias") and each.requires_grad}
    assert len(biases) == 2 * 7
    adapted = model.base_model.model.model.layers[1].mlp.down_proj
    x = gaussian(2, 5, adapted.in_features)

    def gradient(run: Any) -> torch.Tensor:
        (found,) = torch.autograd.grad(run(x).square().sum(), [adapted.base_layer.bias])
        return found

    torch._dynamo.reset()
    expected = gradient(adapted)
    assert float(expected.norm()) > 0
    assert torch.equal(gradient(torch.compile(adapted, backend="eager")), expected)


def test_lora_on_all_linears_learns_and_is_loaded_again(talking_packed: Path, tmp_path: Path) -> None:
    expected = logits(load(talking_packed), IDS)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = get_peft_model(load(talking_packed), LoraConfig(r=4, target_modules="all-linear", bias="none"))
    assert torch.equal(logits(model, IDS), expected)  # a fresh adapter adds nothing
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    assert len(trained) == 2 * 7 * 2 and all("lora_" in name for name in trained)
    descent = torch.optim.AdamW(trained.values(), lr=5e-3)
    losses = []
    for _ in range(8):
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        assert all(each.grad is not None and bool(each.grad.isfinite().all()) for each in trained.values())
        descent.step()
        descent.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    model.save_pretrained(tmp_path)
    again: Any = PeftModel.from_pretrained(load(talking_packed), tmp_path)
    assert torch.equal(logits(again, IDS), logits(model, IDS))
    assert torch.equal(logits(model.unload(), IDS), expected)
