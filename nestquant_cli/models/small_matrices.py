"""Matrices of the decoder layers that are not quantized: small ones stay in 16 bits and are counted, large are refused.

Hybrids keep convolution kernels, state matrices and position embeddings outside nn.Linear, and routers choose experts
by a matrix of a few rows. None of them is worth coding. How small is small was chosen from the shapes of published
models. Those of a layer have at most 4.4 % of its entries: in Zamba 7B, whose projections to a state have a matrix for
each head, the largest with 1,959,936 entries. Next are the gates of RecurrentGemma 2B, 2.6 %, and Mamba of width 768
with `A_log` (1536, 16) and a kernel (1536, 1, 4), 0.8 %. The smallest matrix that should be an nn.Linear, XLNet's `q`,
has 8 %.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ..base.errors import NestQuantError
from .as_linears import routers_of
from .experts import ExpertMatrices
from .linear_kinds import is_plain
from .structure import Decoder, linears

FEW = 4096  # entries; a matrix with fewer always stays in 16 bits
SHARE = 1 / 20  # of the entries of a layer's matrices: larger ones stay where together they have at most this share
LARGEST = 1 << 21  # entries; a matrix with more is never small


@dataclass(frozen=True)
class StayingMatrix:
    """A matrix that stays in 16 bits, in all layers that have it.

    Attributes:
        name: name of the tensor in its layer.
        shape: shape of the tensor.
        layers: number of layers that have it.
        uncalled: whether it is the weight of a Linear that is never called.
    """

    name: str
    shape: tuple[int, ...]
    layers: int
    uncalled: bool = False

    @property
    def entries(self) -> int:
        """Entries in all layers."""
        count = self.layers
        for size in self.shape:
            count *= size
        return count


@dataclass(frozen=True)
class Staying:
    """What stays in 16 bits of the matrices of the decoder layers.

    Attributes:
        matrices: kinds of matrices, in the order of their layers.
        share: their share of all entries of the layers' matrices.
    """

    matrices: tuple[StayingMatrix, ...]
    share: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        named = [
            {"name": each.name, "shape": list(each.shape), "layers": each.layers}
            | ({"uncalled": True} if each.uncalled else {})
            for each in self.matrices
        ]
        return {"matrices": named, "share": self.share}

    @staticmethod
    def of(found: list[tuple[str, tuple[int, ...], bool]], quantized: int) -> "Staying":
        """From the name in its layer and the shape of each matrix, and whether it is of a Linear that is never called;
        and the number of entries that are quantized."""
        counts: dict[tuple[str, tuple[int, ...], bool], int] = {}
        for each in found:
            counts[each] = counts.get(each, 0) + 1
        kinds = tuple(StayingMatrix(name, shape, count, left) for (name, shape, left), count in counts.items())
        entries = sum(kind.entries for kind in kinds)
        return Staying(kinds, entries / max(1, entries + quantized))


def staying(decoder: Decoder, uncalled: Mapping[int, Collection[str]] | None = None) -> Staying:
    """The matrices of opened decoder layers that are not quantized: small ones, those of routers, and those of Linears
    that are never called.

    Args:
        decoder: the decoder layers.
        uncalled: names in its layer of the Linears that are never called, by number of the layer.
    """
    found, quantized = [], 0
    for index, layer in enumerate(decoder.layers):
        left = set() if uncalled is None else {f"{name}.weight" for name in uncalled.get(index, ())}
        coded = {id(linear.weight) for linear in linears(layer).values()}
        for name, parameter in layer.named_parameters():
            if id(parameter) in coded and name not in left:
                quantized += parameter.numel()
            elif parameter.dim() >= 2:
                found.append((name, tuple(parameter.shape), name in left))
    return Staying.of(found, quantized)


def refuse_stray_matrices(model: PreTrainedModel, decoder: Decoder) -> None:
    """Raises NestQuantError when an opened decoder layer has a large weight matrix outside nn.Linear, which would stay
    as it is."""
    for index, layer in enumerate(decoder.layers):
        sizes = {name: parameter.numel() for name, parameter in layer.named_parameters() if parameter.dim() >= 2}
        strays = {name: size for name, size in _strays(layer).items() if size >= FEW}
        whole, largest = sum(sizes.values()), max(strays, key=lambda name: strays[name], default=None)
        if largest is not None and (sum(strays.values()) > SHARE * whole or strays[largest] > LARGEST):
            shape, together = tuple(layer.get_parameter(largest).shape), 100 * sum(strays.values()) / whole
            more = f", with {len(strays) - 1} more {together:.1f} %" if len(strays) > 1 else ""
            raise NestQuantError(
                f"{decoder.layer_name(index)}.{largest} of {type(model).__name__} is a matrix {shape} outside "
                f"nn.Linear, {100 * strays[largest] / whole:.1f} % of its layer{more}",
                "it would stay in 16 bits, and nothing was quantized",
                "use a model whose large matrices are nn.Linear, Conv1D or experts; docs/models.md lists some",
            )


def _strays(layer: nn.Module) -> dict[str, int]:
    """Entries of the matrices of a layer that are in no Linear, in no router and no biases of experts, by name."""
    known = {
        id(parameter)
        for module in layer.modules()
        if isinstance(module, nn.Linear) and is_plain(module)
        for parameter in module.parameters()
    }
    for module in layer.modules():
        experts = [len(child) for child in module.children() if isinstance(child, ExpertMatrices)]
        if experts:  # a vector for each expert
            known |= {
                id(p) for p in module._parameters.values() if p is not None and p.dim() == 2 and len(p) in experts
            }
    routers = tuple(f"{name}." for name in routers_of(layer)) or ("?",)
    return {
        name: parameter.numel()
        for name, parameter in layer.named_parameters()
        if parameter.dim() >= 2 and id(parameter) not in known and not name.startswith(routers)
    }
