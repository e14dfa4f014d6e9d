"""Feedback across rows: it lowers the loss in the metric of outputs, and a diagonal metric changes nothing."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nestquant_cli.codecs.nested.rounding import quantize_rows
from nestquant_cli.e8.shape import shape_for_bits
from nestquant_cli.quantization.factors import Feedback, feedback
from nestquant_cli.quantization.row_feedback import ROWS, row_feedback, row_feedbacks
from tests.families import gaussian

M, N = 3 * ROWS + 8, 96


def moments(n: int, seed: int) -> Tensor:
    x = gaussian(4 * n, n, seed=seed) @ (torch.eye(n) + 0.4 * gaussian(n, n, seed=seed + 1))
    return x.t() @ x / (4 * n)


def step(across: Tensor | None, W: Tensor) -> Feedback:
    found = feedback(W, moments(N, 1), torch.zeros(N), 0.01, "here")
    parts = found.target, found.lower, found.blocks, found.damping
    return Feedback(*parts, () if across is None else row_feedbacks([across], W))


def loss(W: Tensor, across: Tensor | None, metric: Tensor, bits: float = 3.0, paths: int = 1) -> float:
    rounded = quantize_rows(step(across, W), [M - 30, 30], shape_for_bits(bits), 0, paths).values
    E = (rounded - W).double()
    return float((metric.double() @ E @ moments(N, 1).double() * E).sum())


@pytest.mark.parametrize("paths", [1, 8])
@pytest.mark.parametrize("bits", [2.0, 4.0])
def test_the_loss_falls_as_far_as_the_factor_says(bits: float, paths: int) -> None:
    W, G = gaussian(M, N), moments(M, 3)
    across = row_feedback(G, W)
    ordered = G[across.order][:, across.order].double()
    C = torch.linalg.cholesky(ordered + 1e-3 * ordered.diagonal().mean() * torch.eye(M))
    least = float(C.diagonal().square().sum() / ordered.diagonal().sum())  # what undamped single rows would leave
    ratio = loss(W, G, G, bits, paths) / loss(W, None, G, bits, paths)
    assert least < ratio < 0.8


def test_a_diagonal_metric_changes_nothing() -> None:
    W = gaussian(M, N)
    G = gaussian(M).square().add(0.1).diag()
    plain, fed = (quantize_rows(step(each, W), [M], shape_for_bits(4), 0, 1) for each in (None, G))
    assert torch.equal(plain.values, fed.values)
    assert all(torch.equal(plain.tensors[0][name], fed.tensors[0][name]) for name in plain.tensors[0])


@pytest.mark.parametrize("rows", [1, 5, ROWS, M, 4100])
def test_blocks_cover_all_rows_last_first(rows: int) -> None:
    across = row_feedback(torch.eye(rows), torch.ones(rows, 1))
    blocks = across.blocks()
    assert [row for block in reversed(blocks) for row in range(block.start, block.stop)] == list(range(rows))
    assert across.rows == (64 if rows > 4095 else ROWS)
    assert torch.equal(across.lower, torch.eye(rows)) and across.order.sort().values.tolist() == list(range(rows))


def test_rows_without_gradients_are_rounded_by_themselves() -> None:
    W = gaussian(M, N)
    plain, fed = (quantize_rows(step(each, W), [M], shape_for_bits(4), 0, 1) for each in (None, torch.zeros(M, M)))
    assert torch.equal(plain.values, fed.values)


def test_stored_tensors_and_clipped_blocks_are_those_of_each_matrix() -> None:
    W, G = gaussian(M, N), moments(M, 3)
    W[-3] *= 1e-3
    W[-3, 5] = 3  # a row with one large entry overloads the code
    rows = [M - 30, 30]
    for paths in (1, 8):
        found = quantize_rows(step(G, W), rows, shape_for_bits(2.0), 0, paths)
        assert [len(tensors["words"]) for tensors in found.tensors] == rows
        counts = [record["clipped_blocks"] for record in found.records]
        assert counts[1] > 0 and sum(sum(record["beta_histogram"]) for record in found.records) == M * N // 8


def test_threads_do_not_matter() -> None:
    W, G, before = gaussian(M, N), moments(M, 3), torch.get_num_threads()
    found = quantize_rows(step(G, W), [M], shape_for_bits(4), 0, 8).values
    torch.set_num_threads(3)
    try:
        again = quantize_rows(step(G, W), [M], shape_for_bits(4), 0, 8).values
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found, again)


def test_metrics_of_parts_are_one_after_the_other() -> None:
    W, G = gaussian(M, N), moments(M, 3)
    plain = step(None, W)
    halves = replace(plain, across=row_feedbacks(iter([G[:40, :40], G[40:, 40:]]), W))
    found = quantize_rows(halves, [M], shape_for_bits(3), 0, 1)
    assert [len(each.order) for each in halves.across] == [40, M - 40]
    E, H = (found.values - W).double(), moments(N, 1).double()
    G[:40, 40:] = G[40:, :40] = 0
    assert float((G.double() @ E @ H * E).sum()) < 0.95 * loss(W, None, G)
