"""Makes every matrix of the decoder layers that can be quantized an nn.Linear, in place.

A Conv1D, the Linear of GPT-2, becomes a Linear with the transposed weight. The parameters of experts become one Linear
for each expert (`models.experts`). The model computes what it did before, and its tensors share the memory that
they had. An original model goes through this when it is opened, a packed one before its packed modules are put in.
"""

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .experts import ExpertMatrices
from .find_experts import as_linear, experts_modules, take_apart


def as_linears(layers: nn.ModuleList, width: int) -> None:
    """Changes decoder layers in place.

    Args:
        layers: the decoder layers.
        width: size of the hidden states.
    """
    for layer in layers:
        for path, module in list(layer.named_modules()):
            if isinstance(module, Conv1D):
                parent, _, name = path.rpartition(".")
                linear = as_linear(module.weight.detach().t(), module.bias)
                linear.of_conv1d = True  # type: ignore[assignment]
                setattr(layer.get_submodule(parent), name, linear)
        for _, module, experts in list(experts_modules(layer, width)):
            take_apart(module, width, experts)


def own_tensors(layer: nn.Module) -> dict[str, Tensor]:
    """The tensors of a decoder layer by the names and in the shapes of its class: what `as_linears` did is undone.

    Parameters of experts are on the meta device, as a copy may be as large as the layer; `Weights.pieces` has them.
    """
    tensors: dict[str, Tensor] = dict(layer.state_dict())
    for name, module in layer.named_modules():
        if isinstance(module, ExpertMatrices):
            for expert in module._modules:
                del tensors[f"{name}.{expert}.weight"]
            tensors[name] = torch.empty(module.own_shape, dtype=module.dtype, device="meta")
        elif getattr(module, "of_conv1d", False):
            tensors[f"{name}.weight"] = tensors[f"{name}.weight"].t().contiguous()
    return tensors


def experts_of(layer: nn.Module) -> dict[str, ExpertMatrices]:
    """The expert matrices of a decoder layer after `as_linears`, by name in the layer, in the order of their calls."""
    return {name: module for name, module in layer.named_modules() if isinstance(module, ExpertMatrices)}


def routed_experts(layer: nn.Module) -> dict[str, ExpertMatrices]:
    """Those of `experts_of` that a router chooses from: all but the groups of a grouped Linear, which all run."""
    return {
        name: matrices
        for name, matrices in experts_of(layer).items()
        if not isinstance(layer.get_submodule(_around(name)), nn.Linear)
    }


def routers_of(layer: nn.Module) -> list[str]:
    """Names of the modules of a decoder layer that choose experts or weigh them; their Linears stay in 16 bits.

    Such a module is next to an experts module, gives no hidden states (no matrix has as many rows), and has a matrix
    with a row for each expert, for each expert and others that compute nothing, or with one row.
    """
    experts, found = routed_experts(layer), []
    for name, matrices in experts.items():
        block = _around(name.rpartition(".")[0])
        while block and len(list(layer.get_submodule(block).children())) == 1:
            block = _around(block)  # nothing is next to the experts there
        prefix = f"{block}." if block else ""
        width = [last for other, last in experts.items() if other.startswith(prefix)][-1].out_features
        for child, sibling in layer.get_submodule(block).named_children():
            rows = [len(matrix) for matrix in sibling.parameters() if matrix.dim() == 2]
            chooses = any(row == 1 or len(matrices) <= row <= 2 * len(matrices) for row in rows)
            if chooses and width not in rows and not any(isinstance(m, ExpertMatrices) for m in sibling.modules()):
                found.append(prefix + child)
    return list(dict.fromkeys(found))


def _around(path: str) -> str:
    return path.rpartition(".")[0]
