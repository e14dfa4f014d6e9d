"""Follows where numbers in a decoder layer come from: from its hidden states, or from the products of its Linears.

Each tensor has labels, kept by its memory, so that views have those of their base: HIDDEN, or names of Linears. What an
operation makes has the labels of all that it was given; what a Linear makes has its own name alone. So labels say what
a number depends on without another Linear in between. A product with any other matrix of the layer, such as that of a
router, has none; nor have integers, which say where numbers go.
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

HIDDEN = ""  # the label of the hidden states in front of the layer
_MATRIX = " "  # that of the layer's own matrices and of what is made of matrices alone
_PRODUCTS = ("mm", "mv", "matmul", "linear", "einsum")  # in the names of operations that multiply matrices
Labels = frozenset[str]
_NONE: Labels = frozenset()


class DataFlow(TorchDispatchMode):
    """Follows one call of a decoder layer, from `watch` on.

    Args:
        linears: the Linears of the layer by name.

    Attributes:
        inputs: labels of the input of each Linear that was called, by its name.
        output: labels of the layer's output.
    """

    def __init__(self, linears: dict[str, nn.Linear]) -> None:
        super().__init__()
        self.linears = linears
        self.inputs: dict[str, Labels] = {}
        self.output: Labels = _NONE
        # A weak reference keeps the number of a memory from being given to another one.
        self._labels: dict[int, tuple[StorageWeakRef, Labels]] = {}

    def watch(self, layer: nn.Module) -> Iterator[Any]:
        """Hooks on a layer, to be removed by the caller, that follow each of its calls."""
        for name, linear in self.linears.items():
            yield linear.register_forward_pre_hook(lambda _, args, name=name: self._enters(name, args[0]))
            yield linear.register_forward_hook(lambda _, args, y, name=name: self._set(y, frozenset((name,))))
        yield layer.register_forward_pre_hook(self._begins, with_kwargs=True)
        yield layer.register_forward_hook(self._ends, always_call=True)

    def _begins(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for parameter in layer.parameters():
            if parameter.dim() > 1:
                self._set(parameter, frozenset((_MATRIX,)))
        self._set(args[0] if args else kwargs["hidden_states"], frozenset((HIDDEN,)))
        self.__enter__()

    def _ends(self, layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.__exit__(None, None, None)
        first = output[0] if isinstance(output, tuple | list) and output else output
        self.output |= self._of(first) if isinstance(first, Tensor) else _NONE

    def _enters(self, name: str, x: Tensor) -> None:
        self.inputs[name] = self.inputs.get(name, _NONE) | self._of(x)

    def _of(self, tensor: Tensor) -> Labels:
        return self._labels.get(tensor.untyped_storage()._cdata, (None, _NONE))[1]

    def _set(self, tensor: Tensor, labels: Labels) -> None:
        storage = tensor.untyped_storage()
        self._labels[storage._cdata] = StorageWeakRef(storage), labels

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        labels = self._made_of(func, _numbers((args, kwargs)))
        made = func(*args, **kwargs)
        for tensor in _numbers((_changed(func, args, kwargs), made)) if labels else ():
            self._set(tensor, labels | self._of(tensor))
        return made

    def _made_of(self, func: Any, given: list[Tensor]) -> Labels:
        name = func.name().rpartition("::")[2].partition(".")[0]
        if name.startswith("new_") or name.endswith("_like"):  # they take a shape alone
            return _NONE
        found = [self._of(tensor) for tensor in given]
        matrices = [_MATRIX in labels for labels in found]
        if found and all(matrices):
            return frozenset((_MATRIX,))
        if any(matrices) and any(part in name for part in _PRODUCTS):
            return _NONE
        return _NONE.union(*found) - {_MATRIX}


def _numbers(values: Any) -> list[Tensor]:
    """The floating point tensors in nested containers."""
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _changed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """The arguments that an operation writes to."""
    written = []
    for number, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            written.append(args[number] if number < len(args) else kwargs.get(argument.name))
    return written
