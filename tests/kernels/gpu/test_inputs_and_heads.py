"""Tokens and heads by Triton against the reference: on the GPU where there is one, else in Triton's interpreter."""

import pytest
import torch

from nestquant_cli.e8.code import NestedCode
from nestquant_cli.kernels.device_kernels import of_family
from nestquant_cli.rotation.seeds import ScaledSeed, Seed
from tests.families import gaussian

pytest.importorskip("triton", reason="triton is not installed")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CODE, UNIT = NestedCode(q=13, multipliers=(3, 4, 5, 6, 9), word_bits=32), 0.9 / 13 / 2
REFERENCE, GPU = of_family("reference"), of_family("gpu")


@pytest.mark.parametrize("seed", [None, 3, ScaledSeed(3, bytes(range(13, 77)))])
def test_tokens(seed: Seed | None) -> None:
    x, center = gaussian(3, 60).to(DEVICE) + 1, gaussian(64, seed=1).to(DEVICE)
    for center_or_none in (None, center):
        found = GPU.encode_tokens(x, 64, seed, CODE, UNIT, center_or_none)
        expected = REFERENCE.encode_tokens(x, 64, seed, CODE, UNIT, center_or_none)
        assert (found[0] == expected[0]).float().mean() > 0.95 and torch.equal(found[1], expected[1])


@pytest.mark.parametrize("heads", [0, 2])
def test_heads(heads: int) -> None:
    centers = gaussian(heads, 16, seed=1).to(DEVICE) if heads else None
    x = (gaussian(2, 2, 3, 16).to(DEVICE) + (0 if centers is None else 2 * centers[:, None])).reshape(-1, 16)
    packed, decoded = GPU.encode_heads(x, CODE, UNIT, 3, True, centers, 3)
    assert decoded is not None
    assert torch.equal(REFERENCE.decode_heads(packed, 16, CODE, 3, centers, 3), decoded)
    assert (packed == REFERENCE.encode_heads(x, CODE, UNIT, 3, False, centers, 3)[0]).float().mean() > 0.95
