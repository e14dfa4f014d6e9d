"""Which Linears of a decoder layer do the same for different experts: one family for each matrix that an expert has.

Experts come as `ExpertMatrices`, or as an nn.ModuleList of modules with Linears of the same names and shapes, next to a
router: a matrix with a row for each of them. A router is told by its shape, and stays in 16 bits.
"""

from torch import nn

from .as_linears import experts_of

Family = tuple[str, ...]  # names of Linears in the layer, one for each expert in order


def expert_families(layer: nn.Module) -> list[Family]:
    """The Linears of experts in a decoder layer after `as_linears`, in the order of the layer's modules."""
    families = [tuple(f"{name}.{expert}" for expert in experts._modules) for name, experts in experts_of(layer).items()]
    for path, experts in _lists(layer).items():
        families += [tuple(f"{path}.{expert}.{name}" for expert in experts._modules) for name in _shapes(experts[0])]
    return families


def listed_routers(layer: nn.Module) -> list[str]:
    """Names of the modules that route tokens to an nn.ModuleList of experts."""
    return [name for path, experts in _lists(layer).items() for name in _routers(layer, path, len(experts))]


def _lists(layer: nn.Module) -> dict[str, nn.ModuleList]:
    """The nn.ModuleLists of experts by name in the layer."""
    found = {}
    for path, module in layer.named_modules():
        if not isinstance(module, nn.ModuleList) or len(module) < 2:
            continue
        shapes = [_shapes(expert) for expert in module]
        if shapes[0] and all(other == shapes[0] for other in shapes) and _routers(layer, path, len(module)):
            found[path] = module
    return found


def _shapes(expert: nn.Module) -> dict[str, tuple[int, int]]:
    """Sizes of the Linears of a module by name."""
    return {
        name: (linear.out_features, linear.in_features)
        for name, linear in expert.named_modules()
        if name and isinstance(linear, nn.Linear)
    }


def _routers(layer: nn.Module, path: str, count: int) -> list[str]:
    """Names of the modules next to the list at `path` whose only matrix has `count` rows."""
    block = path.rpartition(".")[0]
    siblings = layer.get_submodule(block).named_children()
    prefix = f"{block}." if block else ""
    return [
        prefix + name
        for name, sibling in siblings
        if prefix + name != path and [len(p) for p in sibling.parameters() if p.dim() == 2] == [count]
    ]
