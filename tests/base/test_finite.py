"""NaN and infinities are found wherever they are, in every dtype of logits."""

import pytest
import torch

from nestquant_cli.base.finite import all_finite


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("at", [(0, 0), (2, 511), (6, 1000)])
def test_one_entry_that_is_no_number(dtype: torch.dtype, value: float, at: tuple[int, int]) -> None:
    logits = torch.randn(7, 1001).to(dtype)
    assert all_finite(logits)
    logits[at] = value
    assert not all_finite(logits)


def test_the_largest_numbers_are_numbers() -> None:
    largest = torch.finfo(torch.bfloat16).max
    assert all_finite(torch.tensor([[largest, -largest]], dtype=torch.bfloat16))
