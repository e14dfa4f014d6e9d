"""The vector that is tuned: what it is made of, how it moves the model, and its gradient."""

from pathlib import Path

import pytest
import torch

from nestquant_cli.checkpoint.read import read_layout
from nestquant_cli.tuning.distill import Distillation
from nestquant_cli.tuning.parameters import Tunables
from tests.families import load, logits, make_model, pack, random_ids, save_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_folder: Path, tiny_text_file: Path) -> Path:
    base = tmp_path_factory.mktemp("parameters")
    save_model(make_model("qwen2"), tiny_tokenizer_folder, base / "model")
    return pack(base / "model", tiny_text_file, base / "packed", act_bits=16, kv_bits=16)


def test_row_scales_norms_and_biases_are_tuned(folder: Path) -> None:
    model, layout = load(folder), read_layout(folder)
    names = set(Tunables(model).tensors())
    assert {name for name in names if name.endswith("row_scale")} == {f"{name}.row_scale" for name in layout.linears}
    layer = "model.layers.1"
    others = {f"{layer}.input_layernorm.weight", f"{layer}.self_attn.v_proj.bias", "model.norm.weight"}
    assert others < names
    assert all(name in load(folder).state_dict() for name in names)
    assert not model.get_input_embeddings().weight.requires_grad


def test_zeros_leave_the_model_as_it_is_and_others_do_not(folder: Path) -> None:
    model, ids = load(folder), random_ids(1, 24)
    expected = logits(model, ids)
    tunables = Tunables(model)
    tunables.set(torch.zeros_like(tunables.theta))
    assert torch.equal(logits(model, ids), expected)
    tunables.set(torch.full_like(tunables.theta, 0.05))
    assert not torch.equal(logits(model, ids), expected)


def test_tuned_tensors_give_the_same_logits_in_the_packed_model(folder: Path) -> None:
    model, ids = load(folder), random_ids(1, 24)
    tunables = Tunables(model)
    tunables.set(0.1 * torch.randn(len(tunables.theta), generator=torch.Generator().manual_seed(0)))
    plain = load(folder)
    state = plain.state_dict()
    plain.load_state_dict(state | tunables.tensors())
    assert torch.equal(logits(plain, ids), logits(model, ids))


def test_the_gradient_says_how_the_loss_changes(folder: Path) -> None:
    model = load(folder)
    tunables = Tunables(model)
    distillation = Distillation(make_model("qwen2"), model, read_layout(folder))
    ids = random_ids(1, 24)[0]
    distillation.loss(ids).backward()
    gradient = tunables.take_gradient()
    step = 0.02 * gradient.sign()
    losses = []
    for sign in (1, -1):
        tunables.set(sign * step)
        losses.append(float(distillation.loss(ids).detach()))
    found, expected = (losses[0] - losses[1]) / 2, float(step @ gradient)
    assert abs(found - expected) < 0.1 * expected  # row scales are rounded to bfloat16
    distillation.loss(ids).backward()
    assert tunables.take_gradient().norm() > 0 and tunables.take_gradient().norm() == 0
