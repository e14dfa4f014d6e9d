from collections.abc import Iterator

import numpy as np
import pytest

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.rotation.signs import signs, splitmix64


def reference_bits(order: int, seed: int) -> list[int]:
    """The rule of docs/rotation.md in plain integers."""
    mask = (1 << 64) - 1

    def stream(state: int) -> Iterator[int]:
        while True:
            state = (state + 0x9E3779B97F4A7C15) & mask
            z = state
            z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
            z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
            yield z ^ (z >> 31)

    words = stream(next(stream(next(stream(seed)) ^ order)))
    bits: list[int] = []
    while len(bits) < order:
        word = next(words)
        bits += [word >> k & 1 for k in range(64)]
    return bits[:order]


def test_splitmix64_is_the_published_generator() -> None:
    assert [int(v) for v in splitmix64(0, 2)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]


@pytest.mark.parametrize(
    ("order", "seed", "first", "negative"),
    [
        (64, 0, "+-+-+-++----++--", 32),
        (576, 0, "++++---++--++-+-", 285),
        (576, 1, "++-++-+++-++---+", 291),
        (13696, 2**64 - 1, "+-+-+--++++++---", 6857),
    ],
)
def test_vectors_of_the_document(order: int, seed: int, first: str, negative: int) -> None:
    values = signs(order, seed)
    assert "".join("+" if v > 0 else "-" for v in values[:16]) == first
    assert int((values < 0).sum()) == negative


@pytest.mark.parametrize(("order", "seed"), [(0, 0), (1, 0), (63, 5), (64, 5), (65, 5), (1000, 2**63 + 1)])
def test_signs_follow_the_written_rule(order: int, seed: int) -> None:
    values = signs(order, seed)
    assert values.dtype == np.int8
    assert values.tolist() == [1 - 2 * bit for bit in reference_bits(order, seed)]


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seed_out_of_range(seed: int) -> None:
    with pytest.raises(NestQuantError, match="out of range"):
        signs(8, seed)
