import pytest
import torch

from nestquant_cli.calibration.upper_triangle import UpperTriangle, bytes_of_sum
from tests.families import gaussian


@pytest.mark.parametrize("order", [8, 256, 264, 600])
def test_the_strips_make_up_the_matrix(order: int) -> None:
    factor = gaussian(order, 30).double()
    matrix = factor @ factor.t()
    triangle = UpperTriangle(order, torch.device("cpu"))
    assert not triangle.entries.any()
    for rows, entries in triangle.strips():
        entries += matrix[rows, rows.start :]
    assert torch.equal(triangle.whole(), (matrix.triu() + matrix.triu(1).t()).float())
    assert torch.equal(triangle.diagonal(), matrix.diagonal())
    assert triangle.entries.nbytes == bytes_of_sum(order)


def test_little_more_than_half_of_a_large_matrix_is_kept() -> None:
    assert bytes_of_sum(4096) < 0.54 * 8 * 4096**2
