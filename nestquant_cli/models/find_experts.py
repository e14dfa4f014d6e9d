"""Finds the parameters that hold the matrices of all experts of a layer, by their structure, and takes them apart.

Such a parameter has three dimensions, (experts, out, in) or (experts, in, out), or two, with the experts one below
another. It is in a module that is called with the router's choice: its class is registered with transformers' experts
interface, or a matrix with a row for each expert (the router) is next to it, or its forward needs a second argument and
a side of its matrices is as wide as the hidden states. The blocks of a matrix with blocks on its diagonal, as those of
a recurrent gate, are no experts. The groups of a grouped Linear, each with its own matrix and tokens, are taken apart
like experts.
"""

import inspect
from collections.abc import Iterator

from torch import Tensor, nn

from ..kernels.dense import ExpertLinear
from .experts import ExpertMatrices
from .linear_kinds import groups_of

_FEWEST = 8  # entries of the smaller side of a matrix worth coding: one block of the lattice
_OPTIONAL = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def experts_modules(layer: nn.Module, width: int) -> Iterator[tuple[str, nn.Module, int]]:
    """The modules of a decoder layer with parameters of all experts: name in the layer, module, number of experts.

    Args:
        layer: the decoder layer.
        width: size of the hidden states.
    """
    for path, module in layer.named_modules():
        counts = [len(parameter) for parameter in _matrices(module).values()]
        if counts and _routed(layer, path, module, max(counts), width):
            yield path, module, max(counts)
        elif not counts:
            experts = groups_of(module) or _experts_of_rows(layer, path, module)
            if experts:
                yield path, module, experts


def take_apart(module: nn.Module, width: int, experts: int) -> dict[str, ExpertMatrices]:
    """Replaces the parameters of an experts module by their matrices as Linears, which share their memory.

    Args:
        module: module of the experts.
        width: size of the hidden states, by which the sides are told apart where the module does not say it.
        experts: number of experts, as `experts_modules` gives it.

    Returns:
        the matrices by the name of their parameter.
    """
    taken = {}
    for name, transposed in _transposed(module, width, experts).items():
        parameter = module._parameters.pop(name)
        assert parameter is not None
        whole = parameter.detach()
        whole = whole if whole.dim() == 3 else whole.view(experts, -1, whole.shape[1])
        slices = [matrix.t() if transposed else matrix for matrix in whole]
        matrices = [as_linear(weight, kind=ExpertLinear) for weight in slices]
        taken[name] = ExpertMatrices(matrices, transposed, name, parameter.shape)
        module.add_module(name, taken[name])
    return taken


def as_linear(weight: Tensor, bias: nn.Parameter | None = None, kind: type[nn.Linear] = nn.Linear) -> nn.Linear:
    """A frozen Linear of class `kind` around a weight (out, in) and a bias, which are not copied."""
    out_features, in_features = weight.shape
    linear = kind.__new__(kind)
    nn.Module.__init__(linear)  # without a weight to initialize, which takes longer than all the rest for many experts
    linear.in_features, linear.out_features = in_features, out_features
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


def _routed(layer: nn.Module, path: str, module: nn.Module, experts: int, width: int) -> bool:
    """Whether a module with 3-D parameters is called with the router's choice."""
    if isinstance(module, nn.modules.conv._ConvNd) or experts < 2:
        return False
    if hasattr(module, "_apply_gate"):  # registered with transformers' experts interface
        return True
    if any(experts in rows for rows in _rows_beside(layer, path)):
        return True
    if all(width not in parameter.shape[1:] for parameter in _matrices(module).values()):
        return False
    arguments = inspect.signature(module.forward).parameters.values()
    return sum(each.default is each.empty and each.kind not in _OPTIONAL for each in arguments) > 1


def _experts_of_rows(layer: nn.Module, path: str, module: nn.Module) -> int:
    """How many experts a module has whose parameters are their matrices one below another; 0 for any other module.

    All its parameters are such matrices of one shape, its forward is handed one of each, and the router is next to it
    or to a module around it.
    """
    own = sum(parameter is not None for parameter in module._parameters.values())
    if own < 2:
        return 0
    shapes = [tuple(parameter.shape) for parameter in module.parameters()]
    if own != len(shapes) or len(set(shapes)) > 1 or len(shapes[0]) != 2:
        return 0
    if len(inspect.signature(module.forward).parameters) <= own:
        return 0
    while path:
        for rows in _rows_beside(layer, path):
            for experts in rows:
                size, rest = divmod(shapes[0][0], experts)
                if experts > 1 and not rest and _FEWEST <= size < shapes[0][0]:
                    return experts
        path = path.rpartition(".")[0]
    return 0


def _rows_beside(layer: nn.Module, path: str) -> Iterator[list[int]]:
    """The numbers of rows of the matrices in each module next to the one with this path in the layer."""
    parent, _, name = path.rpartition(".")
    for other, child in layer.get_submodule(parent).named_children():
        if other != name:
            yield [len(matrix) for matrix in child.parameters() if matrix.dim() == 2]


def _transposed(module: nn.Module, width: int, experts: int) -> dict[str, bool]:
    """By parameter, whether its matrices are (in, out): as the module says it, else by the side of the hidden states.

    The last parameter of experts gives hidden states, the others take them. A single one, and matrices with two sides
    as wide as hidden states, are taken for (out, in); model code that multiplies from the other side is refused then.
    """
    shapes = {name: tuple(parameter.shape[1:]) for name, parameter in _matrices(module).items()}
    if not shapes:
        own = {name: matrix for name, matrix in module._parameters.items() if matrix is not None}
        shapes = {name: (len(matrix) // experts, matrix.shape[1]) for name, matrix in own.items()}
    if hasattr(module, "is_transposed") or len(shapes) < 2:
        return dict.fromkeys(shapes, bool(getattr(module, "is_transposed", False)))
    last = list(shapes)[-1]
    return {
        name: rows != columns and width == (columns if name == last else rows)
        for name, (rows, columns) in shapes.items()
    }
