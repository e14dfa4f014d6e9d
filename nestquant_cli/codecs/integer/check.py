"""Checks what is stored of a matrix of integers."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...e8.code import BLOCK
from ..protocol import Checked
from ..row_scale import check_row_scales
from .code import IntegerCode


def check(code: IntegerCode, stored: Mapping[str, NDArray[Any]], entries: int) -> Checked:
    """Scales and the padding of zeros; any digit is one. Arguments as in `Codec.check`."""
    problems = {"row_scale": check_row_scales(stored["row_scale"])}
    if not code.symmetric:
        problems["zeros"] = check_zeros(stored["zeros"], len(code.groups(entries)), code.bits)
    return Checked(problems, [len(stored["words"]) * entries // BLOCK])


def check_zeros(packed: NDArray[np.uint8], groups: int, bits: int) -> str | None:
    """What is wrong with packed zeros (rows, bytes): any value is one, but the padding after the last is to be 0."""
    used = groups * bits - 8 * (packed.shape[1] - 1)
    rows = np.flatnonzero(packed[:, -1].astype(np.int64) >> used)
    return f"row {rows[0]}: the padding after the last zero is not zero" if rows.size else None
