"""The stored tensors of a coded layer of vLLM: its parameters while they are loaded, and what was loaded."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .parameters import RowsParameter, WholeParameter
from .pieces import Piece
from .refusals import not_loaded

_NOT_LOADED = 0x7FC0  # the bits of a bfloat16 that is no number, which no row scale is


def add_parameters(layer: nn.Module, pieces: list[Piece], dtype: torch.dtype, loader: Callable[..., Any]) -> None:
    """Gives a layer the parameters for the stored tensors of its pieces, on the default device.

    Args:
        layer: the layer of vLLM.
        pieces: in the order of the layer's outputs.
        dtype: of a weight that is not coded.
        loader: what vLLM gives to load rows with: `weight_loader_v2`, or `weight_loader` of a replicated layer.
    """
    total = sum(piece.place.rows for piece in pieces)
    for name in dict.fromkeys(name for piece in pieces for name in piece.tensors(1)):
        having = [piece for piece in pieces if name in piece.tensors(1)]
        forms = [piece.tensors(1)[name] for piece in having]
        if having[0].whole(name):
            layer.register_parameter(name, WholeParameter(pieces[-1].place.outputs[-1] + 1, forms[0][1]))
            continue
        width = max((shape[1] for shape, _ in forms if len(shape) > 1), default=0)
        data = torch.zeros((total, width) if width else (total,), dtype=forms[0][1])
        if name == "row_scale":
            data.fill_(_NOT_LOADED)
        layer.register_parameter(name, RowsParameter(data=data, weight_loader=loader))
    if any(piece.linear.code is None for piece in pieces):
        data = torch.full((total, pieces[0].linear.in_features), torch.nan, dtype=dtype)
        layer.register_parameter("weight", RowsParameter(data=data, weight_loader=loader))


def take_tensors(layer: nn.Module, pieces: list[Piece]) -> list[dict[str, Tensor]]:
    """The loaded tensors of each piece by name, "weight" of one that is not coded; the layer's parameters go.

    Raises:
        NestQuantError: some were not loaded.
    """
    found, start = [], 0
    for piece in pieces:
        rows = slice(start, start + piece.place.rows)
        start = rows.stop
        tensors = _of_piece(layer, piece, rows)
        if tensors is None:
            raise not_loaded(f"the tensors of {piece.place.name}")
        found.append(tensors)
    for name in {"weight", *(name for piece in pieces for name in piece.tensors(1))}:
        if name in layer._parameters:
            delattr(layer, name)
    return found


def _of_piece(layer: nn.Module, piece: Piece, rows: slice) -> dict[str, Tensor] | None:
    """The tensors of one piece; None where one is missing."""
    parameters: dict[str, Any] = layer._parameters
    if piece.linear.code is None:
        weight = parameters["weight"].data[rows].clone()
        return None if weight[-1:].isnan().any() else {"weight": weight}
    tensors: dict[str, Tensor] = {}
    for name, (shape, _) in piece.tensors(piece.place.rows).items():
        if piece.whole(name):
            loaded = parameters[name].loaded.get(piece.place.outputs[0])
            if loaded is None or loaded.shape != shape:
                return None
            tensors[name] = loaded
            continue
        data = parameters[name].data[rows]
        if name == "row_scale" and (data == _NOT_LOADED).any():
            return None
        tensors[name] = (data[:, : shape[1]] if len(shape) > 1 else data.reshape(len(data), -1)[:, 0]).clone()
    return tensors
