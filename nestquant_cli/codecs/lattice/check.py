"""Checks what is stored of a matrix of lattices."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...e8.code import BLOCK
from ..protocol import Checked
from ..row_scale import check_row_scales
from .code import LatticeCode


def check(code: LatticeCode, stored: Mapping[str, NDArray[Any]], entries: int) -> Checked:
    """Scales, lattices and the padding of words; any digit is one. Arguments as in `Codec.check`."""
    words = stored["words"]
    problems = {
        "row_scale": check_row_scales(stored["row_scale"]),
        "lattice": check_lattices(stored["lattice"], words[:, code.used_bytes(entries) :]),
    }
    return Checked(problems, [len(words) * entries // BLOCK])


def check_lattices(bits: NDArray[np.int16], padding: NDArray[np.uint8]) -> str | None:
    """What is wrong with matrices G (count, d, d), bits of float16, or the padding (rows, bytes) after the digits."""
    if not np.isfinite(bits.view(np.float16)).all():
        return "an entry of a lattice is not finite"
    rows = np.flatnonzero(padding.any(axis=1))
    return f"row {rows[0]}: the padding of its words is not zero" if rows.size else None
