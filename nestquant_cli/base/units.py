"""Sizes in bytes as people write and read them."""

import re

from .errors import NestQuantError

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def parse_bytes(text: str, option: str) -> int:
    """Bytes of "2GiB", "500MB", "1.5G" or "0".

    KB, MB, GB and TB are powers of 1000; KiB, MiB, GiB, TiB, K, M and G are powers of 1024.

    Args:
        text: number and unit, in upper or lower case; without a unit it is bytes.
        option: option that the text was given for, named in the error.

    Raises:
        NestQuantError: not a size.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)", text.strip())
    if match is None or match[2].upper() not in _UNITS or len(match[1]) > 20:
        raise NestQuantError(f"{option} {text!r} is not a size", "nothing was done", "write 2GiB, 500MB or 0")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def format_bytes(count: float) -> str:
    """A number of bytes as people read it: "1.3 GiB", "12 MiB", "300 bytes"."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if count >= size:
            return f"{count / size:.{1 if count < 100 * size else 0}f} {unit}"
    return f"{count:,.0f} bytes"
