"""Sizes in bytes as people write and read them."""

import re

from .errors import NestQuantError

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def parse_bytes(text: str, option: str) -> int:
    """Bytes of "2GiB", "500MB", "1.5G" or "0".

    Args:
        text: a number and a unit, in any case.
        option: that it was given for, named in the error.

    Raises:
        NestQuantError: not a size.
    """
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)", text.strip())
    if found is None or found[2].upper() not in _UNITS or len(found[1]) > 20:
        raise NestQuantError(f"{option} {text!r} is not a size", "nothing was done", "write 2GiB, 500MB or 0")
    return int(float(found[1]) * _UNITS[found[2].upper()])


def format_bytes(count: float) -> str:
    """ "1.3 GiB", "12 MiB", "300 bytes"."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if count >= size:
            return f"{count / size:.{1 if count < 100 * size else 0}f} {unit}"
    return f"{count:,.0f} bytes"
