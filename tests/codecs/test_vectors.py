"""What a code of vectors gets from its base: a codec writes how rotated rows are rounded, packed and read."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from nestquant_cli.codecs.integer.code import IntegerCode
from nestquant_cli.codecs.registry import VECTOR_CODECS, fit_vectors, shape_of
from nestquant_cli.codecs.vectors import Rounded, VectorCode
from nestquant_cli.modules.cache_codes import check_heads, pack_heads, round_heads, unpack_heads
from nestquant_cli.modules.inputs import InputQuantizer
from nestquant_cli.rotation.transform import rotation
from tests.families import gaussian, relative_error

SEED = 4


@dataclass(frozen=True)
class Halves(VectorCode):
    """Entries in float16."""

    int8 = False

    def round(self, x: Tensor) -> Rounded:
        return Rounded(x.half().float(), None)

    def vector_bytes(self, entries: int) -> int:
        return 2 * entries

    def pack(self, x: Tensor) -> Tensor:
        return x.half().view(torch.uint8)

    def unpack(self, packed: Tensor, entries: int) -> Rounded:
        return Rounded(packed.contiguous().view(torch.float16).float(), None)

    def fitted(self) -> dict[str, Any]:
        return {}


CODES: list[VectorCode] = [Halves(), IntegerCode(8, clip=1.0), IntegerCode(4, symmetric=False, group=8, clip=1.0)]


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("seed", [None, SEED])
def test_tokens_are_rotated_and_rounded(code: VectorCode, seed: int | None) -> None:
    x = gaussian(3, 5, 20)
    found = InputQuantizer(20, seed, code)(x)
    rotated = rotation(24, seed).apply(torch.nn.functional.pad(x.view(15, 20), (0, 4)))
    assert torch.equal(found.dequantized(), code.round(rotated).dequantized())
    assert relative_error(found.dequantized(), rotated) < 0.07


@pytest.mark.parametrize("codec", VECTOR_CODECS)
@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("entries", [8, 24, 40])
def test_packed_vectors_of_any_number_of_bytes_are_read(codec: str, rows: int, entries: int) -> None:
    found = set()
    for bits in range(16, 65):
        try:
            shape = shape_of(codec, bits / 8, None, "act")
        except ValueError:
            continue
        x = gaussian(rows, entries, seed=bits)
        code = fit_vectors(gaussian(64, entries), shape, SEED)
        packed = code.pack(x)
        found.add(code.vector_bytes(entries) % 2)
        unpacked, rounded = code.unpack(packed, entries).dequantized(), code.round(x).dequantized()
        assert relative_error(unpacked, x) < 1.1 * relative_error(rounded, x) + 2**-8  # stored scales are bfloat16
    assert found == {0, 1}


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("seed", [None, SEED])
def test_heads_are_rotated_and_packed_and_come_back(code: VectorCode, seed: int | None) -> None:
    x = gaussian(2, 3, 5, 16)
    packed, rounded = round_heads(x, code, seed)
    assert packed.shape == (2, 3, 5, code.vector_bytes(16)) and torch.equal(packed, pack_heads(x, code, seed))
    assert torch.equal(unpack_heads(packed, 16, code, seed, x.dtype), rounded)
    assert relative_error(rounded, x) < 0.07


@pytest.mark.parametrize("code", CODES)
def test_without_centers_any_heads_fit_and_no_kernel_attends(code: VectorCode) -> None:
    check_heads(code, gaussian(2, 3, 5, 16))
    device = torch.device("cpu")
    assert not code.centered and code.centers(16, device) is None and code.attention_form(16, SEED, device) is None
