import pytest

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.base.units import format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("300", 300), ("2GiB", 2 << 30), ("1.5 gib", 3 << 29), ("500MB", 500_000_000), ("4k", 4096)],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_bytes(text, "--x") == size


@pytest.mark.parametrize("text", ["", "GiB", "-1", "1e9", "2 bags", "9" * 400])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(NestQuantError, match=r"--x .* is not a size"):
        parse_bytes(text, "--x")


def test_sizes_are_written() -> None:
    assert [format_bytes(size) for size in (300, 5 << 20, 3 << 29)] == ["300 bytes", "5.0 MiB", "1.5 GiB"]
