"""The differentiable form of a packed model: the same forward to the bit, and the gradients of its formulas."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from nestquant_cli.checkpoint.read import read_layout
from nestquant_cli.modules.attach import quantized_linears
from nestquant_cli.modules.cache import RoundingCache
from nestquant_cli.modules.linear import QuantizedLinear
from nestquant_cli.modules.straight_through import DifferentiableLinear, make_differentiable
from tests.families import gaussian, load, logits, make_model, pack, random_ids, relative_error, save_model


def packed(family: str, folder: Path, tokenizer: Path, text: Path, **settings: Any) -> Path:
    save_model(make_model(family), tokenizer, folder / "model")
    return pack(folder / "model", text, folder / "packed", **settings)


@pytest.mark.parametrize("family", ["llama", "gemma2", "opt", "gpt_neox"])
def test_the_forward_is_that_of_the_packed_model(
    family: str, tmp_path: Path, tiny_tokenizer_folder: Path, tiny_text_file: Path
) -> None:
    folder = packed(family, tmp_path, tiny_tokenizer_folder, tiny_text_file)
    ids = random_ids(1, 40)
    model, layout = load(folder), read_layout(folder)
    expected = logits(model, ids)
    assert len(make_differentiable(model)) == len(layout.linears)
    cache = RoundingCache(model.config, layout.cache, layout.seed)
    model.get_input_embeddings().weight.requires_grad_(True)
    found = model(input_ids=ids, past_key_values=cache).logits
    assert torch.equal(found, expected)
    found.square().mean().backward()
    assert float(model.get_input_embeddings().weight.grad.norm()) > 0
    assert cache.get_seq_length() == 0  # nothing is kept, so that a layer may be run again


def first_linear(folder: Path, name: str) -> QuantizedLinear:
    return next(module for key, module in quantized_linears(load(folder)).items() if key.endswith(name))


def dense(module: DifferentiableLinear, x: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """The product in float32 without any rounding of x."""
    own = module.linear
    spread = scale[:, None] if scale.dim() == 1 else own.code.spread(scale, own.source.padded)
    return linear(own.source.rotate(x), own.decoded().float() * spread, bias)


KINDS: dict[str, dict[str, Any]] = {
    "zeros": {"method": "integer", "weight_code": {"symmetric": False}},
    "groups": {"method": "integer", "weight_code": {"symmetric": False, "group": 24}},
    "lattices": {"method": "glvq"},
    "learned": {"rotation": "learned", "reflections": 4},
}


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_exact_whatever_codes_the_weights(
    kind: str, tmp_path: Path, tiny_tokenizer_folder: Path, tiny_text_file: Path
) -> None:
    bits = {"weight_bits": 3, "act_bits": 16, "kv_bits": 16}
    folder = packed("opt", tmp_path, tiny_tokenizer_folder, tiny_text_file, **bits, **KINDS[kind])
    module = DifferentiableLinear(first_linear(folder, "fc2"))
    bias = module.linear.bias
    assert module.scale is not None and bias is not None and (module.scale.dim() == 2) == (kind == "groups")
    inputs = [gaussian(2, 5, 128).requires_grad_(True), module.scale, bias.requires_grad_(True)]
    outer = gaussian(10, module.linear.out_features, seed=1)
    found = torch.autograd.grad((module(inputs[0]).flatten(0, 1) * outer).sum(), inputs)
    expected = torch.autograd.grad((dense(module, inputs[0], module.scale, bias) * outer).sum(), inputs)
    for own, other in zip(found, expected, strict=True):
        assert own.shape == other.shape and relative_error(own, other) < 1e-5


def test_the_gradient_of_groups_is_that_of_the_rounded_input(
    tmp_path: Path, tiny_tokenizer_folder: Path, tiny_text_file: Path
) -> None:
    settings: dict[str, Any] = {"method": "integer", "weight_code": {"group": 16}}
    folder = packed("llama", tmp_path, tiny_tokenizer_folder, tiny_text_file, **settings)
    module = DifferentiableLinear(first_linear(folder, "gate_proj"))
    assert module.scale is not None and module.scale.shape == (128, 4)
    x, outer = gaussian(5, 64).requires_grad_(True), gaussian(5, 128, seed=1)
    of_x, of_scale = torch.autograd.grad((module(x) * outer).sum(), (x, module.scale))
    exact = module.linear.source.unrotate(module.linear.source(x).dequantized()).detach()
    scale = module.scale.detach().clone().requires_grad_(True)
    expected = torch.autograd.grad((dense(module, exact, scale, None) * outer).sum(), scale)[0]
    assert relative_error(of_scale, expected) < 1e-5
    straight = torch.autograd.grad((dense(module, x, module.scale.detach(), None) * outer).sum(), x)[0]
    assert relative_error(of_x, straight) < 1e-5


@pytest.mark.parametrize("family", ["qwen3", "opt"])
def test_gradients_without_coded_activations_are_exact(
    family: str, tmp_path: Path, tiny_tokenizer_folder: Path, tiny_text_file: Path
) -> None:
    folder = packed(family, tmp_path, tiny_tokenizer_folder, tiny_text_file, act_bits=16, kv_bits=16)
    module = DifferentiableLinear(first_linear(folder, "k_proj"))
    bias = module.linear.bias
    assert module.scale is not None and (bias is not None) == (family == "opt")
    inputs = [gaussian(5, 64).requires_grad_(True), module.scale]
    if bias is not None:
        inputs.append(bias.requires_grad_(True))
    outer = gaussian(5, module.linear.out_features, seed=1)
    found = torch.autograd.grad((module(inputs[0]) * outer).sum(), inputs)
    expected = torch.autograd.grad((dense(module, inputs[0], module.scale, bias) * outer).sum(), inputs)
    for own, other in zip(found, expected, strict=True):
        assert relative_error(own, other) < 1e-5


def test_gradients_with_coded_activations(tmp_path: Path, tiny_tokenizer_folder: Path, tiny_text_file: Path) -> None:
    folder = packed("llama", tmp_path, tiny_tokenizer_folder, tiny_text_file)
    module = DifferentiableLinear(first_linear(folder, "gate_proj"))
    assert module.scale is not None
    x, outer = gaussian(5, 64).requires_grad_(True), gaussian(5, 128, seed=1)
    of_x, of_scale = torch.autograd.grad((module(x) * outer).sum(), (x, module.scale))
    exact = module.linear.source.unrotate(module.linear.source(x).dequantized()).detach()  # what is multiplied
    expected = (outer * dense(module, exact, torch.ones_like(module.scale), None)).sum(0)
    assert relative_error(of_scale, expected) < 1e-5  # products are linear in the row scales
    straight = torch.autograd.grad((dense(module, x, module.scale.detach(), None) * outer).sum(), x)[0]
    assert relative_error(of_x, straight) < 1e-5


def test_row_scales_are_those_that_are_stored(
    tmp_path: Path, tiny_tokenizer_folder: Path, tiny_text_file: Path
) -> None:
    folder = packed("qwen3", tmp_path, tiny_tokenizer_folder, tiny_text_file)
    module = DifferentiableLinear(first_linear(folder, "down_proj"))
    assert module.scale is not None
    x = gaussian(3, 128)
    before = module(x).detach()
    module.set_scale(module.scale * 1.5)
    assert torch.equal(module.linear.row_scale.view(torch.bfloat16).float(), module.scale)
    assert relative_error(module(x).detach(), 1.5 * before) < 0.01  # of bfloat16
    assert torch.equal(module(x), module.linear(x))
