"""The matrices of experts as nn.Linear: what a mixture of experts keeps in one 3-D parameter, taken apart.

transformers keeps the weights of all experts of a layer in parameters such as `gate_up_proj` (E, 2I, H). The model's
own forward takes slices of them, one for each expert that the router chose, and multiplies the tokens of that expert
with it. `ExpertMatrices` stands in for such a parameter: it holds one Linear for each expert, and a product with its
slice e calls Linear e. So whoever watches or replaces Linears (calibration, packed layers, adapters) sees every expert,
and the routing stays the model's.

An expert parameter is known by its structure: it has three dimensions, it is not the kernel of a convolution, and
either its class is registered with transformers' experts interface, or its module's forward takes a second argument
(the router's choice), or a matrix with a row for each expert (the router) is next to its module.
"""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

_FEWEST = 8  # entries of the smaller side of a matrix worth coding: one block of the lattice


class ExpertMatrices(nn.Module):
    """One 3-D parameter of experts as a Linear for each of them, in the model's code still the parameter.

    The Linears are named `expert_0`, `expert_1`, …: peft chooses Linears by the last part of their names, and a bare
    number would choose decoder layers as well.

    Args:
        linears: one Linear (out, in) for each expert, in order.
        transposed: whether the parameter is (experts, in, out) instead of (experts, out, in).
        name: name of the parameter in its module, for errors.
    """

    _is_hf_initialized = True  # transformers initializes what its files lack, and the files have each expert

    def __init__(self, linears: list[nn.Linear], transposed: bool, name: str) -> None:
        super().__init__()
        self.transposed, self.name = transposed, name
        for number, linear in enumerate(linears):
            self.add_module(f"expert_{number}", linear)

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
    def out_features(self) -> int:
        """Rows of each expert's matrix."""
        rows: int = self._at(0).out_features
        return rows

    @property
    def in_features(self) -> int:
        """Columns of each expert's matrix."""
        columns: int = self._at(0).in_features
        return columns

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the parameter."""
        dtype: torch.dtype = self._at(0).weight.dtype
        return dtype

    @property
    def device(self) -> torch.device:
        """Device of the first expert."""
        device: torch.device = self._at(0).weight.device
        return device

    def dim(self) -> int:
        """Number of dimensions of the parameter."""
        return 3

    def size(self, *dims: int) -> Any:
        """Size of the parameter, or of one of its dimensions."""
        return self.shape[dims[0]] if dims else self.shape

    def transpose(self, first: int, second: int) -> "_Transposed":
        """The parameter with its matrices transposed; other dimensions are never exchanged by model code."""
        if {first % 3, second % 3} != {1, 2}:
            raise NotImplementedError(f"{self.name} is transposed over its experts")
        return _Transposed(self)

    def __getitem__(self, index: Any) -> Any:
        """The matrix of one expert, as the operand of a product; any other index gives a tensor."""
        if isinstance(index, int) or (isinstance(index, Tensor) and index.dim() == 0):
            return _Operand(self._at(index), self.transposed)
        return self.dense()[index]

    def _at(self, index: Any) -> nn.Linear:
        module: Any = self._modules[f"expert_{int(index) % len(self)}"]
        return module

    def dense(self) -> Tensor:
        """The parameter as one tensor, for code that wants no product."""
        weights = torch.stack([weight_of(linear) for linear in self])
        return weights.transpose(1, 2) if self.transposed else weights

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _calculate(function, args, kwargs or {})

    def product(self, x: Tensor, transposed: bool) -> Tensor:
        """torch.bmm of x (experts, tokens, in) with the parameter: (experts, tokens, out).

        Tokens of zeros, which a router did not send to an expert, are left out.
        """
        if not transposed:
            raise NotImplementedError(f"{self.name} is multiplied from its other side")
        out: Tensor = x.new_zeros(*x.shape[:2], self._at(0).out_features)
        for number in range(len(self)):
            rows = x[number].any(-1).nonzero()[:, 0]
            if len(rows):
                out[number, rows] = self._at(number)(x[number, rows])
        return out


class _Transposed:
    """An ExpertMatrices whose matrices model code has transposed before a batched product."""

    def __init__(self, matrices: ExpertMatrices) -> None:
        self.matrices = matrices

    def dense(self) -> Tensor:
        return self.matrices.dense().transpose(1, 2)

    def product(self, x: Tensor, transposed: bool) -> Tensor:
        return self.matrices.product(x, transposed)

    @property
    def transposed(self) -> bool:
        return not self.matrices.transposed

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _calculate(function, args, kwargs or {})


class _Operand:
    """The matrix of one expert where model code multiplies with it: the product is a call of its Linear.

    Args:
        linear: the expert's Linear.
        transposed: whether model code has it as (in, out), for x @ W, instead of (out, in), for F.linear.
    """

    def __init__(self, linear: nn.Linear, transposed: bool) -> None:
        self.linear, self.transposed = linear, transposed

    @property
    def T(self) -> "_Operand":  # noqa: N802 - a tensor's name
        """The matrix transposed."""
        return _Operand(self.linear, not self.transposed)

    t = transpose = lambda self, *_: self.T

    @property
    def shape(self) -> torch.Size:
        """Shape of the matrix as model code has it."""
        sides = self.linear.out_features, self.linear.in_features
        return torch.Size(sides[::-1] if self.transposed else sides)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weight."""
        return self.linear.weight.dtype

    @property
    def device(self) -> torch.device:
        """Device of the weight."""
        return self.linear.weight.device

    def to(self, *_: Any, **__: Any) -> "_Operand":
        """Itself: the product comes in the dtype of the tokens."""
        return self

    float = contiguous = to

    def dense(self) -> Tensor:
        """The matrix as a tensor, for code that wants no product."""
        weight = weight_of(self.linear)
        return weight.t() if self.transposed else weight

    def product(self, x: Tensor, transposed: bool) -> Tensor:
        """x times the matrix: x @ W where `transposed`, else F.linear(x, W)."""
        if transposed != self.transposed:
            raise NotImplementedError("an expert's matrix is multiplied from its other side")
        y: Tensor = self.linear(x)
        return y

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _calculate(function, args, kwargs or {})


_MATMULS = (torch.matmul, torch.bmm, torch.mm, Tensor.matmul, Tensor.__matmul__, Tensor.bmm, Tensor.mm)
_STANDS_IN = (ExpertMatrices, _Transposed, _Operand)


def _calculate(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A function of torch with a stand-in among its arguments: a product calls Linears, all else gets the tensor."""
    if function is nn.functional.linear and isinstance(args[1] if len(args) > 1 else None, _Operand):
        bias = args[2] if len(args) > 2 else kwargs.get("bias")
        y = args[1].product(args[0], transposed=False)
        return y if bias is None else y + bias
    if function in _MATMULS and len(args) == 2 and isinstance(args[1], _STANDS_IN) and isinstance(args[0], Tensor):
        operand: Any = args[1]
        return operand.product(args[0], transposed=True)

    def plain(value: Any) -> Any:
        return value.dense() if isinstance(value, _STANDS_IN) else value

    return function(*map(plain, args), **{name: plain(value) for name, value in kwargs.items()})


def weight_of(linear: Any) -> Tensor:
    """The weight (out, in) of a Linear, dequantized where it is packed."""
    weight: Tensor = linear.dequantized() if hasattr(linear, "dequantized") else linear.weight
    return weight


def experts_modules(layer: nn.Module) -> Iterator[tuple[str, nn.Module, int]]:
    """The modules of a decoder layer with 3-D parameters of experts: name in the layer, module, number of experts."""
    for path, module in layer.named_modules():
        counts = [len(parameter) for parameter in _matrices(module).values()]
        if counts and _routed(layer, path, module, max(counts)):
            yield path, module, max(counts)


def take_apart(module: nn.Module, width: int) -> dict[str, ExpertMatrices]:
    """Replaces the 3-D parameters of an experts module by their matrices as Linears, which share their memory.

    Args:
        module: module of the experts.
        width: size of the hidden states, by which the sides are told apart where the module does not say it.

    Returns:
        the matrices by the name of their parameter.
    """
    transposed, taken = _transposed(module, width), {}
    for name in transposed:
        parameter = module._parameters.pop(name)
        assert parameter is not None
        slices = [matrix.t() if transposed[name] else matrix for matrix in parameter.detach()]
        taken[name] = ExpertMatrices([as_linear(weight) for weight in slices], transposed[name], name)
        module.add_module(name, taken[name])
    return taken


def as_linear(weight: Tensor, bias: nn.Parameter | None = None) -> nn.Linear:
    """A frozen Linear around a weight (out, in) and a bias, which are not copied."""
    out_features, in_features = weight.shape
    linear = nn.Linear(in_features, out_features, bias=False, device="meta", dtype=weight.dtype)
    linear.weight = nn.Parameter(weight, requires_grad=False)
    linear.register_parameter("bias", bias)
    return linear


def _matrices(module: nn.Module) -> dict[str, nn.Parameter]:
    """The 3-D parameters of a module that may be matrices of experts, by name."""
    return {
        name: parameter
        for name, parameter in module._parameters.items()
        if parameter is not None
        and parameter.dim() == 3
        and parameter.is_floating_point()
        and min(parameter.shape[1:]) >= _FEWEST
    }


def _routed(layer: nn.Module, path: str, module: nn.Module, experts: int) -> bool:
    """Whether a module with 3-D parameters is called with the router's choice."""
    if isinstance(module, nn.modules.conv._ConvNd) or experts < 2:
        return False
    if hasattr(module, "_apply_gate"):  # registered with transformers' experts interface
        return True
    if len(inspect.signature(module.forward).parameters) > 1:
        return True
    parent = layer.get_submodule(path.rpartition(".")[0])
    shapes = [matrix.shape for child in parent.children() if child is not module for matrix in child.parameters()]
    return any(len(shape) == 2 and shape[0] == experts for shape in shapes)


def _transposed(module: nn.Module, width: int) -> dict[str, bool]:
    """By parameter, whether its matrices are (in, out): as the module says it, else by the side of the hidden states.

    The last parameter of experts gives hidden states, the others take them. A single one, and matrices with two sides
    as wide as hidden states, are taken for (out, in).
    """
    shapes = {name: parameter.shape[1:] for name, parameter in _matrices(module).items()}
    if hasattr(module, "is_transposed") or len(shapes) < 2:
        return dict.fromkeys(shapes, bool(getattr(module, "is_transposed", False)))
    last = list(shapes)[-1]
    return {
        name: rows != columns and width == (columns if name == last else rows)
        for name, (rows, columns) in shapes.items()
    }
