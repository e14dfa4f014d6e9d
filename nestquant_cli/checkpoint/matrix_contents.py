"""Checks what the report records of one packed matrix."""

import math
from typing import Any

from ..codecs.protocol import Checked
from ..codecs.registry import codec_of
from ..codecs.weights import WeightCode
from ..modules.layout import LinearLayout

_NUMBERS = ("relative_error", "hessian_error", "damping")


def check_record(record: Any, linear: LinearLayout, code: WeightCode, checked: Checked) -> str | None:
    """What is wrong with the report's record of a matrix, or disagrees with what is stored."""
    if not isinstance(record, dict):
        return "has no record"
    if record.get("shape") != [linear.out_features, linear.in_features]:
        return f"records the shape {record.get('shape')}, not {[linear.out_features, linear.in_features]}"
    for name in _NUMBERS:
        value = record.get(name)
        if not isinstance(value, int | float) or not 0 <= value < math.inf:
            return f"records the {name} {value}, not a finite number"
    return codec_of(code).check_record(code, record, checked)
