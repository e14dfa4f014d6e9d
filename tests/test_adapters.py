"""PEFT's LoRA on top of a packed model, whose own weights stay frozen."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from tests.families import load, logits, random_ids

IDS = random_ids(2, 24)


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
