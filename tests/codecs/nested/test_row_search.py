"""The K-best search of nested codes: against the reference, against LDLQ, with clipped blocks, and on any threads."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nestquant_cli.codecs.nested import row_search
from nestquant_cli.codecs.nested.code import ScaledCode
from nestquant_cli.codecs.nested.fit import fit_rows
from nestquant_cli.codecs.nested.rounding import round_rows
from nestquant_cli.codecs.nested.row_search import PANEL, search_rows
from nestquant_cli.e8.shape import shape_for_bits
from nestquant_cli.kernels import for_device
from nestquant_cli.kernels.device_kernels import of_family
from nestquant_cli.quantization.factors import Feedback, feedback
from tests.families import gaussian


def metric(n: int) -> Tensor:
    x = gaussian(3 * n, n, seed=5) @ (torch.eye(n) + 0.3 * gaussian(n, n, seed=6))
    return x.t() @ x / (3 * n)


def prepared(n: int) -> tuple[Tensor, Feedback]:
    H = metric(n)
    return H, feedback(torch.zeros_like(H), H.clone(), torch.zeros(n), 0.01, "here")


def fitted(W: Tensor, bits: float) -> ScaledCode:
    return fit_rows(W, shape_for_bits(bits), 0)


def error(W: Tensor, v: Tensor, scale: Tensor, H: Tensor) -> float:
    E = W - v.float() * scale[:, None]
    return float(((E @ H) * E).sum())


@pytest.mark.parametrize("bits", [2.0, 3.0, 4.0, 5.5])
@pytest.mark.parametrize("paths", [1, 5, 16])
def test_the_compiled_search_is_the_reference(bits: float, paths: int, monkeypatch: pytest.MonkeyPatch) -> None:
    n = PANEL + 24
    W, (_, step) = gaussian(37, n), prepared(n)
    W[5] *= 30
    W[6] = 0
    fine = fitted(W, bits)
    scaled = replace(fine, unit=fine.unit / 8)  # so small that no multiplier holds the larger blocks
    found = search_rows(W, [30, 7], step, scaled, paths)
    assert found[3][0] > 0
    monkeypatch.setattr(row_search, "for_device", lambda _: of_family("reference"))
    expected = search_rows(W, [30, 7], step, scaled, paths)
    assert found[3] == expected[3]
    for a, b in zip(found[:3], expected[:3], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("bits", [2.0, 3.0, 4.0])
def test_more_paths_are_closer_than_feedback_alone(bits: float) -> None:
    n = 96
    W, (H, step) = gaussian(64, n), prepared(n)
    scaled = fitted(W, bits)
    v, _, scale, _ = round_rows(W, [64], step.lower, scaled)
    plain = error(W, v, scale, H)
    errors = []
    for paths in (1, 8, 64):
        v, _, scale, _ = search_rows(W, [64], step, scaled, paths)
        errors.append(error(W, v, scale, H))
    assert errors[0] < 1.01 * plain and errors[1] < 0.97 * plain and errors[2] < errors[1]


def test_what_is_found_can_be_packed() -> None:
    n = 96
    W, (_, step) = gaussian(20, n), prepared(n)
    W[3, :8] = 50
    for bits in (2.0, 3.0, 4.0):
        code = (scaled := fitted(W, bits)).code
        v, index, _, _ = search_rows(W, [20], step, scaled, 8)
        kernels = for_device(W.device)
        assert torch.equal(kernels.unpack(kernels.pack(v, index, code), n, code), v)


def test_threads_do_not_matter() -> None:
    n = PANEL * 2
    W, (_, step) = gaussian(300, n), prepared(n)
    scaled, before = fitted(W, 4.0), torch.get_num_threads()
    found = search_rows(W, [300], step, scaled, 8)
    torch.set_num_threads(3)
    try:
        again = search_rows(W, [300], step, scaled, 8)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(found[:3], again[:3], strict=True))
