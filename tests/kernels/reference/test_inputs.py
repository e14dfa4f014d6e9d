"""Tokens: the compiled loops compute what the reference does, and leave it the rotations that they do not know."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nestquant_cli.e8.code import NestedCode
from nestquant_cli.kernels.device_kernels import of_family
from nestquant_cli.rotation.transform import rotation
from tests.families import gaussian, relative_error

CODE, UNIT, SEED = NestedCode(q=13, multipliers=(3, 4, 5, 6, 9), word_bits=32), 0.9 / 13 / 2, 3
REFERENCE, CPU = of_family("reference"), of_family("cpu")
UNKNOWN = 8 * 67  # an order with a factor beyond those of the compiled loops


def agreement(some: Tensor, others: Tensor) -> float:
    """The share of equal entries; sums in another order may round otherwise."""
    return float((some == others).float().mean())


@pytest.mark.parametrize("seed", [None, SEED])
@pytest.mark.parametrize("features", [64, 60, 576])
def test_tokens(features: int, seed: int | None) -> None:
    x, order = gaussian(20, features) + 1, features + -features % 8
    x[3] = 0
    center = rotation(order, seed).apply(F.pad(torch.ones(1, features), (0, order - features)))[0]
    rotated = REFERENCE.rotate_tokens(x, order, seed)
    torch.testing.assert_close(CPU.rotate_tokens(x, order, seed), rotated, rtol=1e-4, atol=1e-4)
    for center_or_none in (None, center):
        v, scale, centered = REFERENCE.encode_tokens(x, order, seed, CODE, UNIT, center_or_none)
        other, other_scale, other_centered = CPU.encode_tokens(x, order, seed, CODE, UNIT, center_or_none)
        assert agreement(v, other) > 0.999 and v.dtype == other.dtype == torch.int8
        torch.testing.assert_close(scale, other_scale, rtol=1e-5, atol=0)
        assert scale[3] == 1 and not v[3].any()
        decoded = v * scale[:, None]
        if center_or_none is None:
            assert centered is None and other_centered is None
        else:
            assert centered is not None and other_centered is not None and torch.equal(centered, other_centered)
            assert not centered[3] and centered.float().mean() > 0.9
            decoded += centered[:, None] * center
        assert relative_error(decoded, rotated) < 0.1


def test_an_order_that_the_compiled_loops_do_not_know_is_the_references() -> None:
    x = gaussian(5, UNKNOWN)
    assert torch.equal(CPU.rotate_tokens(x, UNKNOWN, SEED), REFERENCE.rotate_tokens(x, UNKNOWN, SEED))
    v, scale, _ = CPU.encode_tokens(x, UNKNOWN, SEED, CODE, UNIT)
    assert relative_error(v * scale[:, None], rotation(UNKNOWN, SEED).apply(x)) < 0.1


def test_a_fingerprint_changes_with_the_contents() -> None:
    for x in (gaussian(4, 8), gaussian(3, 5)[:, ::2]):
        for kernels in (REFERENCE, CPU):
            before = kernels.fingerprint(x)
            same, changed = kernels.fingerprint(x.clone()), kernels.fingerprint(x + 1)
            assert type(before) is type(changed)
            if isinstance(before, Tensor):
                assert torch.equal(before, x)
            else:
                assert before == same != changed
