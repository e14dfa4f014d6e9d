import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nestquant_cli.e8.code import row_bytes
from nestquant_cli.e8.words import join, pack_words, split, unpack_words

ROWS, BLOCKS = (0, 1, 3), (1, 2, 7, 9, 37)


def random_words(rows: int, blocks: int, word_bits: int) -> Tensor:
    generator = torch.Generator().manual_seed(word_bits)
    halves = torch.randint(0, 2**32, (2, rows, blocks), generator=generator)
    words = halves[0] | (halves[1] << 32)
    return words if word_bits == 64 else words & ((1 << word_bits) - 1)


def unsigned(words: Tensor) -> list[list[int]]:
    return [[word % 2**64 for word in row] for row in words.tolist()]


@pytest.mark.parametrize("q, k", [(2, 1), (3, 9), (9, 6), (13, 5), (14, 4), (197, 8), (256, 1)])
def test_split_inverts_join(q: int, k: int) -> None:
    generator = torch.Generator().manual_seed(q)
    digits = torch.randint(0, q, (4, 50, 8), generator=generator)
    index = torch.randint(0, k, (4, 50), generator=generator)
    digits[0, 0], index[0, 0] = q - 1, k - 1  # the largest word; with 64 bits its top bit is set
    words = join(digits, index, q)
    assert unsigned(words)[0][0] == k * q**8 - 1
    got_digits, got_index = split(words, q)
    assert torch.equal(got_digits, digits)
    assert torch.equal(got_index, index)


@given(st.integers(0, 2**64 - 1), st.integers(2, 256))
@settings(max_examples=200, deadline=None)
def test_split_of_any_word(word: int, q: int) -> None:
    signed = word - 2**64 if word >= 2**63 else word
    digits, index = split(torch.tensor([signed]), q)
    assert digits[0].tolist() == [word // q**j % q for j in range(8)]
    assert index.item() == word // q**8


@pytest.mark.parametrize("word_bits", range(16, 65))
def test_unpack_inverts_pack(word_bits: int) -> None:
    for rows in ROWS:
        for blocks in BLOCKS:
            words = random_words(rows, blocks, word_bits)
            packed = pack_words(words, word_bits)
            assert packed.dtype == torch.uint8
            assert packed.shape == (rows, row_bytes(8 * blocks, word_bits))
            assert torch.equal(unpack_words(packed, blocks, word_bits), words)


@pytest.mark.parametrize("word_bits", [1, 16, 19, 28, 32, 33, 57, 63, 64])
@pytest.mark.parametrize("blocks", BLOCKS)
def test_bytes_are_one_little_endian_number(word_bits: int, blocks: int) -> None:
    words = random_words(3, blocks, word_bits)
    rows = pack_words(words, word_bits)
    for row, numbers in zip(rows, unsigned(words), strict=True):
        stream = sum(number << (word_bits * place) for place, number in enumerate(numbers))
        assert bytes(row.tolist()) == stream.to_bytes(-(-blocks * word_bits // 8), "little")


def test_wrong_width_is_refused() -> None:
    with pytest.raises(ValueError, match="3 words of 20 bits need 8 bytes, not 9"):
        unpack_words(torch.zeros(2, 9, dtype=torch.uint8), 3, 20)
