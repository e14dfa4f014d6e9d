"""The learned rotation of an input, which is stored with the first matrix that takes the input."""

import torch
from torch import nn

from ...modules.layout import REFLECTORS
from .parameters import WholeParameter
from .pieces import Piece
from .refusals import not_loaded
from .state import ModelState

_MODULE, _, _TENSOR = REFLECTORS.partition(".")


def add_reflectors(layer: nn.Module, pieces: list[Piece], state: ModelState) -> None:
    """Gives a layer the parameter of the learned rotations that come with its matrices, if any do."""
    if any(piece.place.name in state.layout.reflections for piece in pieces):
        holder = nn.Module()
        holder.register_parameter(_TENSOR, WholeParameter(pieces[-1].place.outputs[-1] + 1, torch.int16))
        layer.add_module(_MODULE, holder)


def take_reflectors(layer: nn.Module, pieces: list[Piece], state: ModelState) -> None:
    """Puts the loaded vectors into the rotations that all layers with the input share.

    Raises:
        NestQuantError: they were not loaded.
    """
    for piece in pieces:
        name = piece.place.name
        if name in state.layout.reflections:
            parameter: WholeParameter = getattr(layer.get_submodule(_MODULE), _TENSOR)
            loaded = parameter.loaded.get(piece.place.outputs[0])
            rotation = state.reflections(name)
            assert rotation is not None
            if loaded is None or loaded.shape != rotation.reflectors.shape:
                raise not_loaded(f"{name}.{REFLECTORS}")
            rotation.reflectors = loaded
    if _MODULE in layer._modules:
        delattr(layer, _MODULE)
