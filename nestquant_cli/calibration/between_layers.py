"""Finds what a model computes between its decoder layers, from a forward whose tensors need no numbers.

Calibration compares two forwards whose layers return other numbers. Where there are none, on the meta device, the
operations themselves say which tensors were made of what a layer returned.
"""

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .arguments import leaves
from .recorder import Recording, computed_between

_OF_SHAPES = {"zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like"}
_OF_SHAPES |= {"new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided"}


class Operations(TorchDispatchMode):
    """Notes which tensors each operation within it takes and makes, and keeps them."""

    def __init__(self) -> None:
        super().__init__()
        self._noted: list[tuple[list[Tensor], list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ not in _OF_SHAPES:  # those depend on no number of what they take
            self._noted.append((_tensors((args, kwargs)), _tensors(made)))
        return made

    def made_of(self, roots: list[Tensor]) -> set[int]:
        """The id() of each of these tensors and of all that were made of them."""
        found = {id(root) for root in roots}
        for taken, made in self._noted:
            if any(id(tensor) in found for tensor in taken):
                found.update(map(id, made))
        return found


def refuse_computed(recording: Recording, operations: Operations, names: list[str]) -> None:
    """Raises NestQuantError where a layer is given what the model computes from what layers returned.

    What an earlier layer returned may be handed on as it is.

    Args:
        recording: a forward.
        operations: those of this forward.
        names: full names of the layers.
    """
    found = operations.made_of([tensor for _, tensor in recording.stand_ins.values()])
    for index, call in recording.calls.items():
        for path, leaf in leaves(call):
            if isinstance(leaf, Tensor) and id(leaf) in found and (index, path) not in recording.carried:
                raise computed_between(names[index])


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
