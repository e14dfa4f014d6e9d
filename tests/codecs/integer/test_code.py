import math

import pytest
import torch
from torch import Tensor

from nestquant_cli.codecs.integer.code import IntegerCode
from nestquant_cli.codecs.integer.rounding import IntegerRounder
from nestquant_cli.codecs.ldlq import ldlq
from nestquant_cli.codecs.registry import decoded, fit_vectors, shape_from, vector_from
from tests.families import gaussian

CODES = [
    IntegerCode(bits, symmetric, group, clip)
    for bits, group in ((2, None), (3, 64), (4, None), (4, 16), (5, 24), (8, None), (8, 32))
    for symmetric in (True, False)
    for clip in (None, 0.9)
]


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_an_unclipped_grid_is_off_by_half_a_step_at_most(bits: int, symmetric: bool) -> None:
    x = gaussian(20, 48) + 0.3
    code = IntegerCode(bits, symmetric, clip=1.0)
    found = code.round(x)
    assert found.scale is not None
    reach = x.abs().amax(1) / (2 ** (bits - 1) - 1) if symmetric else (x.amax(1) - x.amin(1)) / (2**bits - 1)
    torch.testing.assert_close(found.scale, reach, rtol=2**-8, atol=0)  # the scale is a bfloat16
    # a bfloat16 scale that came out small lets the largest entry stick out, and zero is rounded to a step
    slack = 2**-8 * x.abs().amax(1) + (0 if symmetric else 0.5) * found.scale
    assert ((x - found.dequantized()).abs().amax(1) <= found.scale / 2 + slack).all()


def test_entries_and_groups_by_hand() -> None:
    found = IntegerCode(4, clip=1.0).round(torch.tensor([[7.0, -7.0, 0.4, 0.6, 3.6, -3.4, 1.0, 0.0]]))
    assert found.values.dtype == torch.int8 and found.values[0].tolist() == [7, -7, 0, 1, 4, -3, 1, 0]
    found = IntegerCode(2, symmetric=False, clip=1.0).round(torch.tensor([[1.0, 2.2, 3, 4, 4, 2.2, 0.5, 1]]))
    assert found.values[0].tolist() == [1, 2, 2, 3, 3, 2, 0, 1]  # the grid holds 0, too, in steps of 4/3
    assert IntegerCode(4, group=16).groups(40) == [slice(0, 8), slice(8, 24), slice(24, 40)]


@pytest.mark.parametrize("code", CODES, ids=str)
def test_packed_vectors_read_back_as_what_was_rounded(code: IntegerCode) -> None:
    x = gaussian(7, 72) * torch.logspace(-3, 3, 7)[:, None]
    x[3] = 0
    fitted = code.fit(x)
    packed = fitted.pack(x)
    assert packed.dtype == torch.uint8 and packed.shape == (7, fitted.vector_bytes(72))
    assert torch.equal(fitted.unpack(packed, 72).dequantized(), fitted.round(x).dequantized())
    assert not fitted.unpack(packed, 72).dequantized()[3].any()
    again = shape_from(code.to_dict())
    assert again == code and vector_from(fitted.fitted(), again) == fitted


@pytest.mark.parametrize("code", CODES, ids=str)
def test_a_rounded_matrix_is_what_its_tensors_say(code: IntegerCode) -> None:
    W = gaussian(10, 72)
    rounder = IntegerRounder(W, [4, 6], code)
    values = ldlq(W, None, rounder.round, rounder.columns, rounder.panel, rounder.open)
    found = rounder.finish()
    torch.testing.assert_close(found.values, values)
    for rows, tensors in zip((4, 6), found.tensors, strict=True):
        assert {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()} == code.tensors(rows, 72)
    parts = zip(found.codes, found.tensors, strict=True)
    assert torch.equal(torch.cat([decoded(own, tensors, 72) for own, tensors in parts]), found.values)
    assert len(found.records) == 2


def mean_square(code: IntegerCode, x: Tensor) -> float:
    return float((x - code.round(x).dequantized()).square().mean())


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_fitted_clip_has_the_least_error(bits: int) -> None:
    x = gaussian(200, 256)
    best = mean_square(code := fit(x, IntegerCode(bits)), x)
    assert code.clip is not None and 0.3 < code.clip < 1
    for clip in (code.clip - 0.04, code.clip + 0.04, 1.0):
        assert best <= mean_square(IntegerCode(bits, clip=clip), x)
    own = mean_square(IntegerCode(bits), x)  # a clip for each row does better than one for all
    assert own <= best
    step = 2 * math.sqrt(2 * math.log(256)) / 2**bits  # of a grid over nearly all of a Gaussian row
    assert own < step**2 / 12 * 1.2


def fit(x: Tensor, shape: IntegerCode) -> IntegerCode:
    code = fit_vectors(x, shape, 0)
    assert isinstance(code, IntegerCode)
    return code


def test_rows_of_zeros_and_nothing_at_all_are_fitted_without_complaint() -> None:
    assert fit(torch.zeros(0, 16), IntegerCode(4)).clip == 1
    assert not fit(torch.zeros(3, 16), IntegerCode(4)).round(torch.zeros(3, 16)).values.any()


def test_asymmetric_grids_suit_what_is_on_one_side() -> None:
    x = gaussian(50, 64).abs() + 2
    assert mean_square(IntegerCode(4, symmetric=False, clip=1.0), x) < mean_square(IntegerCode(4, clip=1.0), x)
    assert IntegerCode(8, symmetric=False).round(x).values.dtype == torch.int16
