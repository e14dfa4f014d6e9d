"""Lines about the matrices of the decoder layers that are not quantized."""

from math import prod
from typing import Any

from . import console

_NAMES = 4  # of matrices on one line


def print_staying(stays: dict[str, Any]) -> None:
    """Prints small matrices and Linears that are never called, on a line each.

    Args:
        stays: what `Staying.to_dict` gives; empty for none.
    """
    matrices = stays.get("matrices", [])
    sizes = [prod(matrix["shape"]) * matrix["layers"] for matrix in matrices]
    for uncalled, what in (
        (False, "matrices of the layers that stay"),
        (True, "Linears that are never called and stay"),
    ):
        chosen = [place for place, matrix in enumerate(matrices) if matrix.get("uncalled", False) == uncalled]
        if not chosen:
            continue
        names = list(dict.fromkeys(matrices[place]["name"].removesuffix(".weight") for place in chosen))
        more = f" and {len(names) - _NAMES} others" if len(names) > _NAMES else ""
        entries = sum(sizes[place] for place in chosen)
        share = f"{entries:,} entries, {stays['share'] * entries / sum(sizes):.2%} of the layers' matrices"
        console.line(f"{what} in 16 bits: {share}, {', '.join(names[:_NAMES])}{more}")
