import pytest
import torch

from nestquant_cli.e8.digits import pack_digits, pack_zeros, unpack_digits, unpack_zeros, zero_bytes


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("entries", [8, 24, 104])
def test_digits_lie_one_after_the_other_in_a_string_of_bits(bits: int, entries: int) -> None:
    generator = torch.Generator().manual_seed(bits)
    digits = torch.randint(0, 1 << bits, (3, entries), generator=generator).to(torch.uint8)
    packed = pack_digits(digits, bits)
    assert packed.shape == (3, entries * bits // 8)
    assert torch.equal(unpack_digits(packed, entries, bits), digits)
    for row in range(3):
        text = int.from_bytes(packed[row].numpy().tobytes(), "little")
        assert [text >> bits * j & ((1 << bits) - 1) for j in range(entries)] == digits[row].tolist()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("groups", [1, 2, 9, 16])
def test_zeros_take_no_more_bytes_than_their_bits(bits: int, groups: int) -> None:
    zeros = torch.randint(0, 1 << bits, (5, groups), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    packed = pack_zeros(zeros, bits)
    assert packed.shape == (5, zero_bytes(groups, bits)) and zero_bytes(groups, bits) == -(-groups * bits // 8)
    assert torch.equal(unpack_zeros(packed, groups, bits), zeros)
