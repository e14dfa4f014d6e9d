"""The matrices of experts as nn.Linear: what a mixture of experts keeps in one 3-D parameter, taken apart.

transformers keeps the weights of all experts of a layer in parameters such as `gate_up_proj` (E, 2I, H). The model's
own forward takes slices of them, one for each expert that the router chose, and multiplies the tokens of that expert
with it. `ExpertMatrices` stands in for such a parameter: it holds one Linear for each expert, and a product with its
slice e calls Linear e. So whoever watches or replaces Linears (calibration, packed layers, adapters) sees every expert,
and the routing stays the model's. `find_experts` says which parameters these are.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..base.errors import NestQuantError
from ..kernels.dense import DenseLinear
from .stand_in import StandIn, multiplied

_OTHER_SIDE = "its matrices are multiplied from the other side than their shape says"


class ExpertMatrices(StandIn, nn.Module):
    """One 3-D parameter of experts as a Linear for each of them, in the model's code still the parameter.

    The Linears are named `expert_0`, `expert_1`, …: peft chooses Linears by the last part of their names, and a bare
    number would choose decoder layers as well.

    Args:
        linears: one Linear (out, in) for each expert, in order.
        transposed: whether the parameter is (experts, in, out) instead of (experts, out, in).
        name: name of the parameter in its module, for errors.
        own_shape: shape of the parameter where it has the experts one below another; None for three dimensions.

    Attributes:
        own_shape: shape of the parameter as the model's files have it.
    """

    _is_hf_initialized = True  # transformers initializes what its files lack, and the files have each expert

    def __init__(
        self, linears: list[nn.Linear], transposed: bool, name: str, own_shape: torch.Size | None = None
    ) -> None:
        super().__init__()
        self.transposed, self.name = transposed, name
        self.out_features, self.in_features = linears[0].out_features, linears[0].in_features
        for number, linear in enumerate(linears):
            self.add_module(f"expert_{number}", linear)
        self.own_shape = self.shape if own_shape is None else own_shape

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[nn.Linear]:
        modules: Any = self._modules.values()
        return iter(modules)

    @property
    def shape(self) -> torch.Size:
        """Shape of the parameter."""
        sides = (self.in_features, self.out_features) if self.transposed else (self.out_features, self.in_features)
        return torch.Size((len(self), *sides))

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the parameter."""
        return _held(self.at(0)).dtype

    @property
    def device(self) -> torch.device:
        """Device of the first expert."""
        return _held(self.at(0)).device

    def dim(self) -> int:
        """Number of dimensions of the parameter."""
        return 3

    def size(self, *dims: int) -> Any:
        """Size of the parameter, or of one of its dimensions."""
        return self.shape[dims[0]] if dims else self.shape

    def view(self, *shape: Any) -> Any:
        """The parameter in another shape: itself where that is its own, as where model code had experts in rows."""
        sizes = list(shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape)
        if len(sizes) == 3 and all(wanted in (-1, own) for wanted, own in zip(sizes, self.shape, strict=True)):
            return self
        return self.dense().reshape(sizes)

    reshape = view

    def transpose(self, first: int, second: int) -> "_Transposed":
        """The parameter with its matrices transposed; other dimensions are never exchanged by model code."""
        if {first % 3, second % 3} != {1, 2}:
            raise self.refused("its experts are exchanged with another dimension")
        return _Transposed(self)

    @property
    def mT(self) -> "_Transposed":  # noqa: N802 - a tensor's name
        """The parameter with its matrices transposed."""
        return _Transposed(self)

    def __getitem__(self, index: Any) -> Any:
        """The matrix of one expert, as the operand of a product; any other index gives a tensor."""
        if index.dim() == 0 if isinstance(index, Tensor) else hasattr(index, "__index__"):
            return _Operand(self, self.at(index), self.transposed)
        return self.dense()[index]

    def at(self, index: Any) -> nn.Linear:
        """The Linear of an expert."""
        number = int(index)
        if not -len(self) <= number < len(self):
            raise IndexError(f"{self.name} has {len(self)} experts, and expert {number} was asked for")
        module: Any = self._modules[f"expert_{number % len(self)}"]
        return module

    def dense(self) -> Tensor:
        """The parameter as one tensor, for code that wants no product.

        Raises:
            NestQuantError: experts are packed. Code that multiplies by itself would leave out that inputs are rounded.
        """
        weights = torch.stack([self.weight_of(linear) for linear in self])
        return weights.transpose(1, 2) if self.transposed else weights

    def pieces(self) -> Iterator[Tensor]:
        """The parameter in pieces along its first dimension, one expert's after the other; raises as `dense`."""
        for linear in self:
            weight = self.weight_of(linear)
            yield weight.t() if self.transposed else weight

    def weight_of(self, linear: nn.Module) -> Tensor:
        """The weight (out, in) of an expert; raises as `dense` where its Linear does more than multiply with it."""
        if type(linear) is not nn.Linear and not isinstance(linear, DenseLinear):
            raise self.refused(f"a {type(linear).__name__} is wanted as a tensor")
        weight: Tensor = linear.weight
        return weight

    def refused(self, cause: str) -> NestQuantError:
        """The error of an operation that the Linears cannot do."""
        return NestQuantError(
            f"{self.name}: {cause}",
            "the model was not run",
            'call model.set_experts_implementation("nestquant"), or use a model of another class',
        )

    def product(self, x: Tensor, transposed: bool = True) -> Tensor:
        """x (experts, tokens, in), or (tokens, in) for all experts, times the parameter: (experts, tokens, out).

        Tokens of zeros, which a router did not send to an expert, are left out.

        Args:
            x: the tokens.
            transposed: whether model code has the matrices as (in, out).
        """
        if transposed != self.transposed:
            raise self.refused(_OTHER_SIDE)
        x = x.expand(len(self), *x.shape[-2:])
        out: Tensor = x.new_zeros(*x.shape[:2], self.out_features)
        for number in range(len(self)):
            rows = x[number].any(-1).nonzero()[:, 0]
            if len(rows):
                out[number, rows] = multiplied(self.at(number), x[number, rows])
        return out


class _OfParameter(StandIn):
    """What model code makes of an ExpertMatrices before it multiplies."""

    def __init__(self, matrices: ExpertMatrices) -> None:
        self.matrices = matrices

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return self.matrices.dtype

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.matrices.device


class _Transposed(_OfParameter):
    """An ExpertMatrices whose matrices model code has transposed before a batched product."""

    def dense(self) -> Tensor:
        return self.matrices.dense().transpose(1, 2)

    def product(self, x: Tensor, transposed: bool = True) -> Tensor:
        return self.matrices.product(x, not transposed)

    @property
    def shape(self) -> torch.Size:
        return self.matrices.shape[:1] + self.matrices.shape[:0:-1]

    def size(self, *dims: int) -> Any:
        return self.shape[dims[0]] if dims else self.shape


class _Operand(_OfParameter):
    """The matrix of one expert where model code multiplies with it: the product is a call of its Linear.

    Args:
        matrices: the parameter.
        linear: the expert's Linear.
        transposed: whether model code has it as (in, out), for x @ W, instead of (out, in), for F.linear.
    """

    def __init__(self, matrices: ExpertMatrices, linear: nn.Linear, transposed: bool) -> None:
        super().__init__(matrices)
        self.linear, self.transposed = linear, transposed

    @property
    def T(self) -> "_Operand":  # noqa: N802 - a tensor's name
        """The matrix transposed."""
        return _Operand(self.matrices, self.linear, not self.transposed)

    mT = T  # noqa: N815 - a tensor's name
    t = transpose = lambda self, *_: self.T

    @property
    def shape(self) -> torch.Size:
        """Shape of the matrix as model code has it."""
        sides = self.matrices.out_features, self.matrices.in_features
        return torch.Size(sides[::-1] if self.transposed else sides)

    def to(self, *_: Any, **__: Any) -> "_Operand":
        """Itself: the product comes in the dtype of the tokens."""
        return self

    float = contiguous = to

    def dense(self) -> Tensor:
        """The matrix as a tensor, for code that wants no product."""
        weight = self.matrices.weight_of(self.linear)
        return weight.t() if self.transposed else weight

    def product(self, x: Tensor, transposed: bool = True) -> Tensor:
        """x times the matrix: x @ W where `transposed`, else F.linear(x, W)."""
        if transposed != self.transposed:
            raise self.matrices.refused(_OTHER_SIDE)
        return multiplied(self.linear, x)


def _held(linear: nn.Module) -> Tensor:
    """A tensor with the dtype and the device of a Linear, or of what stands in its place."""
    weight: Any = getattr(linear, "weight", None)
    return weight if isinstance(weight, Tensor) else next(linear.parameters())
