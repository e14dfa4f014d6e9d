"""The factorization that LDLQ works with, against block elimination and against torch's own."""

import pytest
import torch

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.codecs.ldlq import PANEL
from nestquant_cli.quantization.factors import LADDER, factorize, feedback, unit_lower
from tests.codecs.test_ldlq import block_ldl, correlated
from tests.families import gaussian


@pytest.mark.parametrize("n", [8, 72, PANEL, 3 * PANEL + 40])
def test_unit_lower_factorizes(n: int) -> None:
    H = correlated(n, tokens=2 * n + 10)
    L = unit_lower(torch.linalg.cholesky(H))
    expected, D = block_ldl(H)
    torch.testing.assert_close(L, expected, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(L @ D @ L.t(), H, rtol=1e-10, atol=1e-10)


def test_the_target_is_that_of_the_noisy_input() -> None:
    H, noise = correlated(64), torch.linspace(0.01, 0.2, 64).double()
    W = gaussian(5, 64)
    step = feedback(W, H.float(), noise.float(), 1e-3, "here")
    damped = H + 1e-3 * H.diagonal().mean() * torch.eye(64)
    expected = W.double() @ damped @ torch.linalg.inv(damped + torch.diag(noise))
    torch.testing.assert_close(step.target.double(), expected, rtol=1e-4, atol=1e-5)
    L, _ = block_ldl(damped + torch.diag(noise))
    torch.testing.assert_close(step.lower.double(), L, rtol=1e-4, atol=1e-5)
    assert step.damping == 1e-3


def test_damping_climbs_the_ladder_and_says_so() -> None:
    """An indefinite H, as rounding in float32 can make it, needs more than the first step."""
    H = torch.diag(torch.tensor([1.0] * 15 + [-0.05]))
    step = feedback(gaussian(3, 16), H, torch.zeros(16), 0.01, "here")
    assert step.damping == pytest.approx(0.01 * LADDER[1])
    assert torch.isfinite(step.lower).all()


def test_no_step_of_the_ladder_is_refused_by_name() -> None:
    H = torch.diag(torch.tensor([1.0] * 15 + [-2.0]))
    with pytest.raises(NestQuantError, match=r"H \+ J of layers\.3\.up is not positive definite even with damping 1;"):
        feedback(gaussian(3, 16), H, torch.zeros(16), 0.001, "layers.3.up")
    with pytest.raises(NestQuantError, match=r"the input of layers\.3\.up was zero on all calibration text"):
        feedback(gaussian(3, 16), torch.zeros(16, 16), torch.zeros(16), 0.01, "layers.3.up")


@pytest.mark.parametrize("n", [8, 256, 600])
def test_factorize_is_cholesky(n: int) -> None:
    H = correlated(n, tokens=2 * n + 10)
    C = H.clone()
    assert factorize(C)
    torch.testing.assert_close(C, torch.linalg.cholesky(H))
    H[n - 1, n - 1] = -1.0
    assert not factorize(H)
