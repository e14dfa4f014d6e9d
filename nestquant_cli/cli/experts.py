"""The line that names the experts which saw few or no tokens of the calibration text."""

from collections.abc import Mapping
from typing import Any

from . import console

_NAMED = 4  # matrices that are named


def print_experts(records: Mapping[str, Mapping[str, Any]]) -> None:
    """Prints the line, where there is such an expert: one whose Hessian is more than half that of all experts.

    Args:
        records: "tokens" and "pooled" of each expert's matrices by their full names, other entries without these.
    """
    of_experts = {name: record for name, record in records.items() if "pooled" in record}
    few = {name: record["tokens"] for name, record in of_experts.items() if record["pooled"] > 0.5}
    if not few:
        return
    fewest = sorted(few, key=lambda name: few[name])[:_NAMED]
    names = ", ".join(f"{name} ({few[name]})" for name in fewest) + (", …" if len(few) > _NAMED else "")
    none = sum(count == 0 for count in few.values())
    console.line(
        f"experts with few tokens: {len(few)} of {len(of_experts)} matrices, {none} of them with none: {names}; "
        "they rely on the tokens of all experts; raise --samples, or give --all-experts"
    )
