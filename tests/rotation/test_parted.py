import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nestquant_cli.rotation.parted import Parted, parted_rotation
from nestquant_cli.rotation.reflections import rotation_for
from nestquant_cli.rotation.transform import rotation
from tests.families import gaussian


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 40).map(lambda blocks: 8 * blocks), st.one_of(st.none(), st.integers(0, 9)))
def test_each_part_is_rotated_as_a_vector_of_its_size(parts: int, size: int, seed: int | None) -> None:
    whole, x = parted_rotation(parts * size, seed, parts), gaussian(2, 3, parts * size)
    y = whole.apply(x)
    for number in range(parts):
        part = slice(number * size, (number + 1) * size)
        torch.testing.assert_close(y[..., part], rotation(size, seed).apply(x[..., part]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(whole.inverse(y), x, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x @ whole.matrix().t(), y, rtol=1e-5, atol=1e-5)


def test_one_part_is_the_rotation_itself() -> None:
    assert parted_rotation(24, 3) is rotation(24, 3)
    assert isinstance(rotation_for(48, 3, parts=2), Parted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_vectors_come_back_as_float32(dtype: torch.dtype) -> None:
    assert parted_rotation(48, 3, 2).apply(gaussian(2, 48).to(dtype)).dtype == torch.float32
