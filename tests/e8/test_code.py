import pytest

from nestquant_cli.e8.code import NestedCode, row_bytes, smallest_word


@pytest.mark.parametrize(
    "change, message",
    [
        ({"q": 1}, "at least 2"),
        ({"multipliers": ()}, "positive integers"),
        ({"multipliers": (0, 1)}, "positive integers"),
        ({"multipliers": (3, 3)}, "must increase"),
        ({"multipliers": (4, 3)}, "must increase"),
        ({"multipliers": (3, 128)}, "up to limit 127"),
        ({"q": 2, "multipliers": tuple(range(1, 257)), "limit": 300}, "at most 255 multipliers"),
        ({"word_bits": 0}, "1 to 64 bits"),
        ({"word_bits": 65}, "1 to 64 bits"),
        ({"word_bits": 31}, "does not fit"),
        ({"limit": 0}, "limit"),
        ({"limit": 40000}, "limit"),
    ],
)
def test_refused_parameters(change: dict[str, object], message: str) -> None:
    parameters: dict[str, object] = {"q": 13, "multipliers": (3, 4, 5, 6, 9), "word_bits": 32, "limit": 127}
    with pytest.raises(ValueError, match=message):
        NestedCode(**{**parameters, **change})  # type: ignore[arg-type]


@pytest.mark.parametrize("q, k", [(2, 1), (3, 9), (13, 5), (14, 4), (16, 1), (256, 1), (255, 1)])
def test_smallest_word(q: int, k: int) -> None:
    bits = smallest_word(q, k)
    assert 2 ** (bits - 1) < k * q**8 <= 2**bits


def test_row_bytes_round_up() -> None:
    with pytest.raises(ValueError, match="12 entries are not whole blocks"):
        row_bytes(12, 32)
    assert [row_bytes(8 * blocks, 33) for blocks in (0, 1, 8, 9)] == [0, 5, 33, 38]
