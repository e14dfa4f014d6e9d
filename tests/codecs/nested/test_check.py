import numpy as np
import pytest
import torch

from nestquant_cli.codecs.nested.check import check_words, decode_wide, multiplier_index
from nestquant_cli.e8.code import NestedCode
from nestquant_cli.e8.shape import shape_for_bits
from nestquant_cli.e8.words import pack_words
from nestquant_cli.kernels.reference import nested as reference

CODE = NestedCode(9, (3, 4, 5, 6, 7, 9), 28)


def quantized(entries: int, code: NestedCode, unit: float) -> tuple[np.ndarray, torch.Tensor, list[int]]:
    x = torch.randn(4, entries, generator=torch.Generator().manual_seed(0))
    v, index, _ = reference.quantize(x, torch.full((4,), unit), code)
    histogram = torch.bincount(index.flatten().int(), minlength=code.k).tolist()
    return reference.pack(v, index, code).numpy(), v, histogram


@pytest.mark.parametrize("bits", [2, 2.125, 3.5, 4, 4.125, 6, 8])
def test_words_of_every_size(bits: float) -> None:
    shape = shape_for_bits(bits)
    code = shape.with_multipliers(tuple(range(3, 3 + shape.k)))
    packed, v, histogram = quantized(24, code, 0.5 / code.q)
    assert check_words(packed, 24, code) == (histogram, None)
    assert np.array_equal(decode_wide(packed, 24, code), v.numpy())


def test_padding_bits() -> None:
    packed, _, _ = quantized(24, CODE, 0.05)
    packed[2, -1] |= 0x10
    assert check_words(packed, 24, CODE)[1] == "row 2: the padding after the last word is not zero"


@pytest.mark.parametrize(("bits", "q", "k"), [(28, 9, 6), (33, 14, 5), (64, 197, 8)])
def test_words_beyond_the_code(bits: int, q: int, k: int) -> None:
    code = NestedCode(q, tuple(range(1, k + 1)), bits, 32767)
    for word, valid in ((k * q**8 - 1, True), (k * q**8, False), (2**bits - 1, False)):
        words = torch.zeros(4, 3, dtype=torch.int64)
        words[1, 2] = word - (1 << 64) if word >> 63 else word
        packed = pack_words(words, bits).numpy()
        histogram, problem = check_words(packed, 24, code)
        assert (problem is None) == valid
        assert multiplier_index(packed, 3, code)[1, 2] == word // q**8
        if not valid:
            assert problem is not None and problem.startswith("row 1: word 2 is not below k·q⁸")
        else:
            assert sum(histogram) == 12


def test_entries_beyond_the_limit_are_found_also_where_int8_would_wrap() -> None:
    code = NestedCode(13, (3, 4, 5, 6, 9), 32)
    words = torch.randint(4 * 13**8, 5 * 13**8, (4, 64), generator=torch.Generator().manual_seed(0))
    packed = pack_words(words, 32).numpy()
    assert np.abs(decode_wide(packed, 512, code)).max() > 128
    problem = check_words(packed, 512, code)[1]
    assert problem is not None and problem.endswith("beyond 127")


def test_wide_decoding_of_multipliers_beyond_int16() -> None:
    words = torch.full((1, 1), 3**8 + 4321)
    small, large = NestedCode(3, (1, 2), 64, 32767), NestedCode(3, (1, 30000), 64, 32767)
    packed = pack_words(words, 64).numpy()
    assert np.array_equal(decode_wide(packed, 8, large), 15000 * decode_wide(packed, 8, small))
