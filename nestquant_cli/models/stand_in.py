"""What stands in for a tensor in model code, so that a product with it is calculated otherwise."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels.dense import DenseLinear


class StandIn:
    """Base of the stand-ins: torch hands over its functions that have one among their arguments."""

    def product(self, x: Tensor, transposed: bool = True) -> Tensor:
        """x @ W of the matrix W that it stands for; F.linear(x, W) unless `transposed`."""
        raise NotImplementedError

    def dense(self) -> Tensor:
        """The tensor itself, for functions that are no product."""
        raise NotImplementedError

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _calculate(function, args, kwargs or {})


def multiplied(linear: nn.Module, x: Tensor) -> Tensor:
    """linear(x), in x's dtype also where model code has cast the weight to it; no call without tokens."""
    if not x.numel():
        sizes: Any = linear
        return x.new_zeros(*x.shape[:-1], sizes.out_features)
    plain = type(linear) is nn.Linear or isinstance(linear, DenseLinear)
    weight = linear._parameters["weight"] if plain else None  # which need not be read for its dtype
    dtype = x.dtype if weight is None else weight.dtype
    y: Tensor = linear(x) if dtype == x.dtype else linear(x.to(dtype)).to(x.dtype)
    return y


_MATMULS = (torch.matmul, torch.bmm, torch.mm, Tensor.matmul, Tensor.__matmul__, Tensor.bmm, Tensor.mm)
_SUMS = (torch.addmm, torch.baddbmm, Tensor.addmm, Tensor.baddbmm)


def _calculate(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A function of torch with a stand-in among its arguments: a product calls Linears, all else gets the tensor."""
    if function is nn.functional.linear:
        x, weight, bias = _linear_arguments(*args, **kwargs)
        if isinstance(weight, StandIn) and isinstance(x, Tensor):
            return _plus(bias, weight.product(x, transposed=False))
    last: Any = args[-1] if args and not kwargs else None
    if isinstance(last, StandIn) and all(isinstance(other, Tensor) for other in args[:-1]):
        if function in _MATMULS and len(args) == 2:
            return last.product(args[0])
        if function in _SUMS and len(args) == 3:
            return _plus(args[0], last.product(args[1]))

    def plain(value: Any) -> Any:
        return value.dense() if isinstance(value, StandIn) else value

    return function(*map(plain, args), **{name: plain(value) for name, value in kwargs.items()})


def _linear_arguments(input: Any, weight: Any, bias: Any = None) -> tuple[Any, Any, Any]:
    return input, weight, bias


def _plus(bias: Tensor | None, y: Tensor) -> Tensor:
    return y if bias is None else y + bias
