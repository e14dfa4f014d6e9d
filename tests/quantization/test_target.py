"""The target for a noisy input, by whichever way is cheaper, against its definition."""

import pytest
import torch

from nestquant_cli.quantization.target import inverse, noisy_target
from tests.codecs.test_ldlq import correlated
from tests.families import gaussian


@pytest.mark.parametrize("rows", [1, 7, 300, 700])
@pytest.mark.parametrize("n", [8, 304])
def test_it_is_the_definition(rows: int, n: int) -> None:
    H, noise = correlated(n, tokens=3 * n), torch.linspace(0.01, 0.5, n).double()
    W = gaussian(rows, n)
    C = torch.linalg.cholesky(H + 0.25 * torch.eye(n) + torch.diag(noise))
    expected = W.double() @ (H + 0.25 * torch.eye(n)) @ torch.cholesky_inverse(C)
    found = noisy_target(W, noise.float(), C, None, 0.25)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_another_input_of_the_original_model_takes_the_place_of_this_one() -> None:
    H, cross, W = correlated(40), gaussian(40, 40, seed=3), gaussian(9, 40)
    C = torch.linalg.cholesky(H)
    expected = W.double() @ (cross.double() + 0.5 * torch.eye(40)) @ torch.cholesky_inverse(C)
    found = noisy_target(W, torch.zeros(40), C, cross.clone(), 0.5)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("way", ["noise", "cross", "neither"])
def test_a_residual_is_added_in_front_of_the_inverse(way: str) -> None:
    H, W, residual = correlated(40), gaussian(9, 40), gaussian(9, 40, seed=2)
    noise = torch.full((40,), 0.2) if way == "noise" else torch.zeros(40)
    cross = gaussian(40, 40, seed=3) if way == "cross" else None
    C = torch.linalg.cholesky(H + torch.diag(noise))
    plain = noisy_target(W, noise, C, None if cross is None else cross.clone(), 0.0)
    found = noisy_target(W, noise, C, cross, 0.0, residual)
    expected = plain.double() + residual.double() @ torch.cholesky_inverse(C)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_without_noise_it_is_the_weight() -> None:
    W = gaussian(3, 16)
    assert noisy_target(W, torch.zeros(16), torch.eye(16).double(), None, 0.1) is W


@pytest.mark.parametrize("n", [8, 256, 264, 700])
def test_the_inverse_is_symmetric_and_the_inverse(n: int) -> None:
    H = correlated(n, tokens=2 * n + 10)
    found = inverse(torch.linalg.cholesky(H))
    assert torch.equal(found, found.t())
    torch.testing.assert_close(found @ H, torch.eye(n).double(), rtol=1e-7, atol=1e-7)


def test_the_same_on_any_number_of_threads() -> None:
    H, W = correlated(600, tokens=1300), gaussian(500, 600)
    C = torch.linalg.cholesky(H)
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(noisy_target(W, torch.full((600,), 0.1), C, None, 0.0))
    torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
