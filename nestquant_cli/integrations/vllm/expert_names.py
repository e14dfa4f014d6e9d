"""The matrices of the experts in one layer of vLLM: their names in the layout, and how their tensors come to the layer.

A layout has `…experts.gate_up_proj.expert_17`, as transformers' class keeps the matrices of all experts in parameters
(`models.experts`). vLLM's layer of experts takes tensors by other names: the number comes before the matrix, and the
matrix has the name that it has in the model's files on the Hub, such as `experts.17.gate_proj` or `experts.17.w1`.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from ...modules.layout import REFLECTORS, LinearLayout
from .refusals import not_served

_EXPERT = re.compile(r"(?:.*\.)?([^.]+)\.expert_(\d+)")
_TURN = REFLECTORS.replace(".", "_")  # a name without a dot, as parameters have


class ExpertMatrix(NamedTuple):
    """One of the matrices that each expert of a layer has.

    Attributes:
        parameter: last part of the name of the parameter that has it for all experts.
        names: names in the layout, by number of the expert.
    """

    parameter: str
    names: list[str]


def expert_matrices(names: Sequence[str], experts: int) -> tuple[ExpertMatrix, ExpertMatrix]:
    """The first matrix of each expert, gate and up in one, and the last one.

    Args:
        names: names in the layout of all matrices of the layer's experts, in its order.
        experts: how many experts the layer has.

    Raises:
        NestQuantError: they are not two for each expert.
    """
    found: dict[str, dict[int, str]] = {}
    for name in names:
        match = _EXPERT.fullmatch(name)
        if match is None:
            raise not_served(f"{name} is a matrix of experts that each are modules of their own")
        found.setdefault(match[1], {})[int(match[2])] = name
    if len(found) != 2:
        raise not_served(f"experts have {len(found)} coded matrices, such as {names[0]}, and not two")
    for parameter, numbered in found.items():
        if sorted(numbered) != list(range(experts)):
            raise not_served(f"{len(numbered)} of {experts} experts have a coded {parameter}, such as {names[0]}")
    first, last = (
        ExpertMatrix(name, [numbered[number] for number in range(experts)]) for name, numbered in found.items()
    )
    return first, last


def refuse_other_sizes(matrix: ExpertMatrix, linears: Sequence[LinearLayout], rows: int, columns: int) -> None:
    """Raises NestQuantError where the matrices are not (rows, columns), or have biases.

    Args:
        matrix: the matrix.
        linears: what the layout says of it for each expert.
        rows, columns: the sizes that vLLM's layer has.
    """
    for name, linear in zip(matrix.names, linears, strict=True):
        if (linear.out_features, linear.in_features) != (rows, columns):
            own = f"{linear.out_features} x {linear.in_features}"
            raise not_served(f"{name} is {own}, in vLLM's layer {rows} x {columns}")
        if linear.bias:
            raise not_served(f"{name} has a bias")


def patterns(matrices: dict[str, str]) -> dict[re.Pattern[str], str]:
    """What brings the names of experts' tensors into the form that vLLM's layers of experts take, for `re.sub`.

    Args:
        matrices: name that vLLM has for a matrix, such as w1, by name of its parameter, such as gate_up_proj.
    """
    found = {}
    for parameter, name in matrices.items():
        path = rf"\.{re.escape(parameter)}\.expert_(\d+)\."
        found[re.compile(path + re.escape(REFLECTORS))] = rf".\1.{name}.{_TURN}"
        found[re.compile(path)] = rf".\1.{name}."
    return found


def stored_name(tensor: str) -> str:
    """The name in the checkpoint, after that of the matrix, of a tensor that the layer has by another name."""
    return REFLECTORS if tensor == _TURN else tensor


def parameter_of(tensor: str) -> str:
    """The name without dots of a tensor that the checkpoint has by this name after that of the matrix."""
    return _TURN if tensor == REFLECTORS else tensor
