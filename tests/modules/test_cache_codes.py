import pytest
import torch

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.codecs.nested.code import ScaledCode
from nestquant_cli.e8.code import NestedCode, row_bytes
from nestquant_cli.e8.vectors import SCALE_BYTES
from nestquant_cli.modules.cache_codes import check_head_size, pack_heads, unpack_heads

CODE = ScaledCode(NestedCode(q=13, multipliers=(3, 4, 5, 6, 9), word_bits=32), unit=0.9 / 13 / 2)


@pytest.mark.parametrize("shape", [(2, 3, 5, 64), (1, 80)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    packed = pack_heads(x, CODE, seed=7)
    assert packed.dtype == torch.uint8
    assert packed.shape == (*shape[:-1], row_bytes(shape[-1], 32) + SCALE_BYTES)
    y = unpack_heads(packed, shape[-1], CODE, seed=7, dtype=dtype)
    assert y.shape == x.shape and y.dtype == dtype
    assert (x.float() - y.float()).square().mean() < 0.008 * x.float().square().mean()


def test_a_vector_is_coded_alone() -> None:
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(1))
    assert torch.equal(pack_heads(x, CODE, seed=0)[2:3], pack_heads(x[2:3], CODE, seed=0))


def test_zeros_stay_zeros() -> None:
    packed = pack_heads(torch.zeros(3, 64), CODE, seed=0)
    assert torch.equal(unpack_heads(packed, 64, CODE, 0, torch.float32), torch.zeros(3, 64))


def test_head_size_must_be_whole_blocks() -> None:
    check_head_size(64)
    with pytest.raises(NestQuantError, match="head size 60 is not a multiple of 8"):
        check_head_size(60)
