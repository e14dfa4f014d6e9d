"""QA-LDLQ against its textbook form: dense, unpanelled, in float64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nestquant_cli.codecs.ldlq import PANEL, ldlq
from nestquant_cli.quantization.factors import feedback, unit_lower
from tests.families import gaussian

STEP = 0.5  # of the rounding that stands for a code in these tests


def correlated(n: int, tokens: int = 400, seed: int = 0) -> Tensor:
    """A positive definite Hessian (n, n) float64 of correlated inputs."""
    x = gaussian(tokens, n, seed=seed).double() @ (gaussian(n, n, seed=seed + 1).double() / n**0.5)
    x += 0.05 * gaussian(tokens, n, seed=seed + 2)
    return x.t() @ x / tokens


def rounded(x: Tensor) -> Tensor:
    return torch.round(x / STEP) * STEP


def block_ldl(H: Tensor) -> tuple[Tensor, Tensor]:
    """L and block-diagonal D of H = L D Lᵀ by block Gaussian elimination, all (n, n)."""
    n = H.shape[0]
    L, D, rest = torch.eye(n, dtype=H.dtype), torch.zeros_like(H), H.clone()
    for start in range(0, n, 8):
        own, below = slice(start, start + 8), slice(start + 8, n)
        D[own, own] = rest[own, own]
        L[below, own] = rest[below, own] @ torch.linalg.inv(rest[own, own])
        rest[below, below] -= L[below, own] @ D[own, own] @ L[below, own].t()
    return L, D


def textbook_ldlq(W: Tensor, L: Tensor, round_block: Callable[[Tensor], Tensor]) -> Tensor:
    """Ŵ_b = Q(W_b + Σ_{c > b} (W_c − Ŵ_c) L_cb), the last block first."""
    n = W.shape[1]
    found = torch.zeros_like(W)
    for start in range(n - 8, -1, -8):
        own, after = slice(start, start + 8), slice(start + 8, n)
        found[:, own] = round_block(W[:, own] + (W[:, after] - found[:, after]) @ L[after, own])
    return found


def loss(delta: Tensor, H: Tensor) -> float:
    return float((delta.double() @ H @ delta.double().t()).diagonal().sum())


@pytest.mark.parametrize("n", [8, PANEL, 2 * PANEL + 24])
def test_ldlq_equals_the_textbook(n: int) -> None:
    H, W = correlated(n, tokens=2 * n + 10), gaussian(5, n, seed=7).double()
    L = unit_lower(torch.linalg.cholesky(H))
    blocks: list[int] = []

    def round_block(target: Tensor, number: int) -> Tensor:
        assert target.shape == (5, 8)
        blocks.append(number)
        return rounded(target)

    assert torch.equal(ldlq(W, L, round_block), textbook_ldlq(W, L, rounded))
    assert blocks == list(range(n // 8 - 1, -1, -1))


def test_without_correlations_ldlq_is_plain_rounding() -> None:
    W = gaussian(4, 64)
    step = feedback(W, torch.eye(64), torch.zeros(64), 0.01, "here")
    assert torch.equal(ldlq(W, step.lower, lambda target, _: rounded(target)), rounded(W))
    assert step.target is W


def test_ldlq_beats_plain_rounding_where_inputs_are_correlated() -> None:
    H, W = correlated(128), gaussian(16, 128, seed=3)
    step = feedback(W, H.float(), torch.zeros(128), 1e-4, "here")
    found = ldlq(W, step.lower, lambda target, _: rounded(target))
    assert loss(found - W, H) < 0.7 * loss(rounded(W) - W, H)


def test_knowing_the_noise_lowers_the_true_error() -> None:
    """E‖Ŵ(x + z) − W x‖² on fresh data, with and without J in target and feedback."""
    n, tokens = 64, 4000
    mix = gaussian(n, n, seed=1) / 8
    x, z = gaussian(tokens, n, seed=2) @ mix, 0.3 * gaussian(tokens, n, seed=3)
    W, H = gaussian(16, n, seed=4), x.t() @ x / tokens

    def error(noise: Tensor) -> float:
        step = feedback(W, H, noise, 1e-3, "here")
        found = ldlq(step.target, step.lower, lambda target, _: rounded(target))
        fresh = gaussian(tokens, n, seed=5) @ mix
        return float(((fresh + z) @ found.t() - fresh @ W.t()).square().mean())

    assert error(torch.full((n,), 0.09)) < 0.9 * error(torch.zeros(n))
