"""Products of int8 matrices are exact, with instructions for them and without."""

import pytest
import torch

from nestquant_cli.kernels import int8


@pytest.fixture(params=[True, False], ids=["instructions", "float32"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "INSTRUCTIONS", request.param)


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize(
    "m, n, k", [(1, 1, 1), (9, 11, 4097), (3, 2, 1024), (5, 7, 1025), (0, 4, 8), (4, 0, 8), (2, 3, 0)]
)
def test_sums_are_exact(m: int, n: int, k: int) -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randint(-128, 128, (m, k), generator=generator, dtype=torch.int8)
    b = torch.randint(-128, 128, (n, k), generator=generator, dtype=torch.int8)
    a[:1], b[:1] = 127, 127  # an odd sum, which float32 does not hold from 2²⁴ on
    b[1:2] = -128
    sums = int8.integer_product(a, b)
    assert sums.dtype == torch.int32 and torch.equal(sums.long(), a.long() @ b.long().t())


@pytest.mark.usefixtures("either_way")
def test_matrices_may_lie_transposed_in_memory() -> None:
    generator = torch.Generator().manual_seed(1)
    a = torch.randint(-128, 128, (2000, 24), generator=generator, dtype=torch.int8).t()
    b = torch.randint(-128, 128, (2000, 16), generator=generator, dtype=torch.int8).t()
    assert torch.equal(int8.integer_product(a, b).long(), a.long() @ b.long().t())
