"""Products of bfloat16 matrices where torch has fast ones and where it has not."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModelForCausalLM

from nestquant_cli.checkpoint.load import load_model
from nestquant_cli.kernels import dense
from nestquant_cli.models.source import resolve
from nestquant_cli.models.weights import open_weights

ULP = 2.0**-7  # of bfloat16, relative: rounding to nearest errs by half of it


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "EMULATED", True)
    monkeypatch.setattr(dense, "_PANEL", 100)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("shape, rows", [((8, 30), 7), ((2, 5, 30), 3), ((9, 300), 2), ((3, 4, 2, 8), 25)])
def test_bfloat16_is_rounded_once(shape: tuple[int, ...], rows: int, with_bias: bool) -> None:
    x, weight = random(*shape), random(rows, shape[-1], seed=1)
    bias = random(rows, seed=2) if with_bias else None
    y = dense.linear(x, weight, bias)
    exact = x.double() @ weight.double().t() + (0 if bias is None else bias.double())
    assert y.dtype == torch.bfloat16 and y.shape == (*shape[:-1], rows)
    assert ((y.double() - exact).abs() <= 0.5 * ULP * exact.abs() + 1e-4).all()


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("tokens, dtype", [(7, torch.bfloat16), (0, torch.bfloat16), (9, torch.float32)])
def test_the_rest_is_left_to_torch(tokens: int, dtype: torch.dtype) -> None:
    x, weight = random(tokens, 30).to(dtype), random(7, 30, seed=1).to(dtype)
    assert torch.equal(dense.linear(x, weight), F.linear(x, weight))


@pytest.mark.usefixtures("emulated")
def test_a_gradient_goes_through_a_product_that_keeps_no_float32() -> None:
    kept: list[torch.dtype] = []
    x, weight = random(9, 30).requires_grad_(), random(7, 30, seed=1)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor.dtype) or tensor, lambda each: each
    ):
        y = dense.linear(x, weight)
    y.sum().backward()
    assert torch.float32 not in kept and x.grad is not None
    torch.testing.assert_close(x.grad, weight.sum(0).expand(9, 30))


class Own(nn.Linear):
    """Of somebody else, with a product of its own."""


@pytest.mark.usefixtures("emulated")
def test_linears_of_a_model_are_hastened_and_no_others() -> None:
    model = nn.Sequential(nn.Linear(30, 20), nn.ReLU(), Own(20, 10)).bfloat16()
    plain, x = copy.deepcopy(model), random(9, 30)
    dense.use_float32_products(model)
    assert [type(part) for part in model] == [dense.DenseLinear, nn.ReLU, Own]
    assert model.state_dict().keys() == plain.state_dict().keys()
    with torch.inference_mode():
        torch.testing.assert_close(copy.deepcopy(model)(x), plain(x), rtol=4 * ULP, atol=1e-2)


def test_nothing_changes_where_torch_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "EMULATED", False)
    model = nn.Sequential(nn.Linear(30, 20))
    dense.use_float32_products(model)
    assert type(model[0]) is nn.Linear
    x, weight = random(9, 30), random(7, 30, seed=1)
    assert torch.equal(dense.linear(x, weight), F.linear(x, weight))


@pytest.mark.usefixtures("emulated")
def test_every_way_of_loading_a_model_hastens_it(tiny_model_folder: Path, tiny_checkpoint: Path) -> None:
    source = resolve(str(tiny_model_folder))
    packed = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    for model in (
        load_model(source),
        load_model(resolve(str(tiny_checkpoint))),
        open_weights(source, "cpu").model,
        packed,
    ):
        assert type(model.get_output_embeddings()) is dense.DenseLinear


@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 130, 1500])
def test_an_expert_multiplies_few_numbers_of_tokens(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "EMULATED", False)
    expert, x = dense.ExpertLinear(40, 24, dtype=torch.bfloat16), torch.randn(tokens, 40, dtype=torch.bfloat16)
    seen: list[int] = []
    product = dense.F.linear
    monkeypatch.setattr(dense.F, "linear", lambda x, *rest: seen.append(len(x)) or product(x, *rest))
    with torch.inference_mode():
        found = expert(x)
    assert tokens <= seen[0] <= tokens * 9 / 8 and seen[0].bit_length() - (seen[0] & -seen[0]).bit_length() < 4
    expected = product(x.float(), expert.weight.float(), None if expert.bias is None else expert.bias.float())
    torch.testing.assert_close(found.float(), expected, rtol=0.02, atol=0.02)
