"""Which Linears of a decoder layer are row-parallel: in tensor parallel each process has some columns of their weights.

A Linear is row-parallel where every way from the layer's hidden states to its input goes through another matrix of the
layer, and some way from its product to the layer's output goes through none: the projection behind attention, and the
last one of an MLP, of an expert or of a recurrent mixer. Their inputs lie divided over the processes, as the matrices
before them are divided by rows, and their products are added up. Names play no part in it.
"""

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from torch import nn

from ..base.errors import NestQuantError
from ..codecs.weights import Shape
from ..e8.code import BLOCK
from ..models.expert_families import expert_families
from ..models.structure import linears
from .data_flow import HIDDEN, DataFlow


@dataclass(frozen=True)
class Divided:
    """How the inputs of row-parallel Linears are divided.

    Attributes:
        parts: number of equal parts.
        unit: what the size of a part has to be a multiple of.
    """

    parts: int
    unit: int

    @staticmethod
    def of(parts: int, shape: Shape | None) -> "Divided":
        """In so many parts, of which no block or group of a weight code of this shape is in two."""
        return Divided(parts, math.lcm(BLOCK, getattr(shape, "group", None) or BLOCK))

    def fits(self, features: int) -> bool:
        """Whether an input of this size can be divided so."""
        return features % (self.parts * self.unit) == 0


def row_parallel(layer: nn.Module, divided: Divided, place: str, run: Callable[[], None]) -> frozenset[str]:
    """Names of the row-parallel Linears of a decoder layer. Linears of one family of experts are so together.

    Args:
        layer: the layer.
        divided: how their inputs are to be divided.
        place: name of the layer, for errors.
        run: runs the layer on some text, on this thread.

    Raises:
        NestQuantError: an input cannot be divided so.
    """
    with Following(layer) as following:
        run()
    return following.row_parallel(divided, place)


class Following(ExitStack):
    """Within it the calls of a decoder layer are followed.

    Args:
        layer: the layer.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self._families = expert_families(layer)
        self._flow = DataFlow(linears(layer))
        for hook in self._flow.watch(layer):
            self.callback(hook.remove)

    def row_parallel(self, divided: Divided, place: str) -> frozenset[str]:
        """Names of the row-parallel Linears after a call; see the function `row_parallel`."""
        flow = self._flow
        names = {name for name, labels in flow.inputs.items() if labels and HIDDEN not in labels} & flow.output
        for family in self._families:
            names |= set(family) if not names.isdisjoint(family) else set()
        refuse_indivisible({name: flow.linears[name].in_features for name in sorted(names)}, divided, place)
        return frozenset(names)


def refuse_indivisible(features: dict[str, int], divided: Divided, place: str) -> None:
    """Raises NestQuantError for a row-parallel Linear, of these by name, whose input cannot be divided."""
    for name, size in features.items():
        if not divided.fits(size):
            fewer = (Divided(parts, divided.unit) for parts in range(divided.parts - 1, 1, -1))
            best = next((other.parts for other in fewer if all(map(other.fits, features.values()))), None)
            raise NestQuantError(
                f"the {size} inputs of {place}.{name} cannot be divided into {divided.parts} parts, each a multiple "
                f"of {divided.unit}",
                "nothing was quantized",
                "leave --tensor-parallel out" if best is None else f"use --tensor-parallel {best}",
            )
