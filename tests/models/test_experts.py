"""ExpertMatrices stands in for a parameter of all experts in every way that model code multiplies with one."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.models.experts import ExpertMatrices
from nestquant_cli.models.find_experts import experts_modules, take_apart

WIDTH, INNER = 16, 24


def hit(choice: Tensor, experts: int) -> list[tuple[Tensor, Tensor]]:
    """Per expert with tokens its number, a 0-dimensional tensor, and the numbers of its tokens."""
    return [(e, (choice == e).any(1).nonzero()[:, 0]) for e in torch.arange(experts) if bool((choice == e).any())]


class Rows(nn.Module):
    """Slices (out, in) in F.linear: the usual class."""

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(experts, 2 * INNER, WIDTH))
        self.down_proj = nn.Parameter(torch.randn(experts, WIDTH, INNER))

    def forward(self, x: Tensor, choice: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        for e, tokens in hit(choice, len(self.gate_up_proj)):
            gate, up = F.linear(x[tokens], self.gate_up_proj[e]).chunk(2, dim=-1)
            y.index_add_(0, tokens, F.linear(input=gate.sigmoid() * up, weight=self.down_proj[e]))
        return y


class Columns(nn.Module):
    """Slices (in, out) behind @, in float32 and with biases; the first (in, out) told by the side of the states."""

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(experts, WIDTH, INNER))
        self.down = nn.Parameter(torch.randn(experts, INNER, WIDTH))
        self.bias = nn.Parameter(torch.randn(experts, WIDTH))

    def forward(self, x: Tensor, choice: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        for e, tokens in hit(choice, len(self.up)):
            inner = (x[tokens].float() @ self.up[e].float()).sigmoid()
            y.index_add_(0, tokens, torch.addmm(self.bias[e], inner, self.down[e].float()).to(y.dtype))
        return y


class Batched(nn.Module):
    """Products over all experts, with zeros for tokens of others; the second is transposed by model code."""

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(experts, INNER, WIDTH))
        self.down = nn.Parameter(torch.randn(experts, WIDTH, INNER))

    def forward(self, x: Tensor, choice: Tensor) -> Tensor:
        sent = F.one_hot(choice, len(self.up)).amax(1).T[:, :, None] * x
        inner = torch.bmm(sent, self.up.transpose(1, 2)).relu()
        return (inner @ self.down.mT).sum(0)


class Stacked(nn.Module):
    """Matrices one below another, which a module around it reshapes: both sides of a product occur."""

    class Hold(nn.Module):
        def __init__(self, experts: int) -> None:
            super().__init__()
            self.w1 = nn.Parameter(torch.randn(experts * INNER, WIDTH))
            self.w2 = nn.Parameter(torch.randn(experts * INNER, WIDTH))

        def forward(self, x: Tensor, up: Tensor, down: Tensor) -> Tensor:
            return x.matmul(up.T).relu().matmul(down)

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.mlp = Stacked.Hold(experts)

    def forward(self, x: Tensor, choice: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        experts = len(self.mlp.w1) if isinstance(self.mlp.w1, ExpertMatrices) else len(self.mlp.w1) // INNER
        for e, tokens in hit(choice, experts):
            up, down = (matrix.view((-1, INNER, WIDTH))[e] for matrix in (self.mlp.w1, self.mlp.w2))
            y.index_add_(0, tokens, self.mlp(x[tokens], up, down))
        return y


class Split(nn.Module):
    """Tokens sorted by expert and split, some parts empty; Python integers as indices."""

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(experts, WIDTH, WIDTH))

    def forward(self, x: Tensor, choice: Tensor) -> Tensor:
        order = choice[:, 0].argsort(stable=True)
        parts = x[order].split(torch.bincount(choice[:, 0], minlength=len(self.weight)).tolist())
        y = torch.cat([F.linear(part, self.weight[e]) for e, part in enumerate(parts)])
        return torch.empty_like(y).index_copy(0, order, y)


KINDS = [Rows, Columns, Batched, Stacked, Split]


class Layer(nn.Module):
    def __init__(self, kind: type[nn.Module], experts: int) -> None:
        super().__init__()
        self.router, self.experts = nn.Linear(WIDTH, experts), kind(experts)


def apart(kind: Callable[..., Any], experts: int) -> tuple[Any, Any]:
    """An experts module, and a copy of it that is taken apart."""
    layer = Layer(kind, experts)
    twin = copy.deepcopy(layer)
    found = list(experts_modules(twin, WIDTH))
    for _, module, count in found:
        assert count == experts
        take_apart(module, WIDTH, count)
    assert found
    return layer.experts, twin.experts


@given(
    kind=st.sampled_from(KINDS),
    experts=st.integers(2, 9),
    top=st.integers(1, 3),
    tokens=st.integers(0, 7),
    seed=st.integers(0, 99),
)
def test_every_forward_computes_the_same(kind: Any, experts: int, top: int, tokens: int, seed: int) -> None:
    torch.manual_seed(seed)
    original, module = apart(kind, experts)
    choice = torch.stack([torch.randperm(experts)[: min(top, experts)] for _ in range(tokens)] or [torch.zeros(0)])
    choice = choice.long().reshape(tokens, -1 if tokens else min(top, experts))
    called: set[int] = set()
    for matrices in (each for each in module.modules() if isinstance(each, ExpertMatrices)):
        for number, linear in enumerate(matrices):
            linear.register_forward_pre_hook(lambda *_, number=number: called.add(number))
    x = torch.randn(tokens, WIDTH, requires_grad=True)
    other = x.detach().clone().requires_grad_()
    y, expected = module(x, choice) + 0 * x.sum(), original(other, choice) + 0 * other.sum()
    torch.testing.assert_close(y, expected, atol=1e-4, rtol=1e-4)
    assert called == set((choice if kind is not Split else choice[:, :1]).unique().tolist())
    y.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(x.grad, other.grad, atol=1e-2, rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_copies_are_whole(kind: Any) -> None:
    _, module = apart(kind, 3)
    x, choice = torch.randn(4, WIDTH), torch.randint(3, (4, 2))
    expected = module(x, choice)
    other = copy.deepcopy(module)
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    assert other(x, choice).abs().max() == 0
    other.load_state_dict(module.state_dict())
    for twin in (other, pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin(x, choice), expected)
    half = copy.deepcopy(module).to(torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(half(x.bfloat16(), choice).float(), expected, atol=1, rtol=0.2)


def test_it_looks_like_its_parameter() -> None:
    original, module = apart(Columns, 3)
    up, matrices = original.up, module.up
    assert matrices.shape == up.shape
    assert (matrices.dtype, matrices.device, matrices.dim(), matrices.size(2)) == (up.dtype, up.device, 3, INNER)
    assert matrices.transpose(2, 1).shape == matrices.mT.shape == up.mT.shape
    assert matrices[1].shape == up[1].shape
    assert matrices[torch.tensor(1)].T.shape == up[1].T.shape
    assert torch.equal(matrices[torch.tensor([0, 2])], up[[0, 2]])
    assert torch.equal(torch.einsum("eio->oi", matrices), torch.einsum("eio->oi", up))
    with pytest.raises(IndexError, match="expert 3"):
        matrices[3]


def test_the_other_side_of_a_product_is_refused() -> None:
    _, module = apart(Split, 3)  # square: nothing says that it is multiplied from the other side
    x = torch.randn(2, WIDTH)
    for product in (lambda: x @ module.weight[0], lambda: torch.bmm(x.expand(3, -1, -1), module.weight)):
        with pytest.raises(NestQuantError, match="other side"):
            product()


def test_linears_that_do_more_than_multiply_are_no_tensor() -> None:
    class Adapted(nn.Linear):
        pass

    _, module = apart(Split, 3)
    module.weight.expert_1 = Adapted(WIDTH, WIDTH)
    assert module.weight[0].dense() is not None
    with pytest.raises(NestQuantError, match="Adapted"):
        module.weight[torch.tensor([0, 1])]


def test_what_is_no_expert_stays() -> None:
    class Heads(nn.Module):  # a matrix for each head, as in Mamba of Zamba
        def __init__(self) -> None:
            super().__init__()
            self.x_proj, self.A_log = nn.Parameter(torch.randn(2, 40, 16)), nn.Parameter(torch.randn(2, 16, 16))

        def forward(self, x: Tensor, cache: Any = None, **kwargs: Any) -> Tensor:
            return x

    layer = nn.ModuleDict({"mamba": Heads(), "conv": nn.Conv1d(16, 16, 8), "norm": nn.LayerNorm(16)})
    assert not list(experts_modules(layer, 16))
