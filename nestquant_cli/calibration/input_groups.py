"""Which Linears of a layer share an input, found by watching their calls."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..models.expert_families import Family
from .all_experts import is_routed_call
from .current_window import current_window

Calls = dict[str, dict[int, list[Tensor]]]  # inputs of each Linear by name, then by number of the window


@dataclass(frozen=True)
class ExpertInput:
    """An input that the experts of a layer share: each is given its own tokens of it.

    Attributes:
        families: the matrices that take the input; of each, the names of its Linears, one for each expert.
    """

    families: tuple[Family, ...]

    @property
    def source(self) -> str:
        """Name of the input: that of the first Linear with it."""
        return self.families[0][0]

    @property
    def experts(self) -> int:
        """Number of experts."""
        return len(self.families[0])

    def members(self, expert: int) -> tuple[str, ...]:
        """Names of the Linears of one expert that take the input."""
        return tuple(family[expert] for family in self.families)


class InputGroups:
    """Groups of Linears that are called with the very same tensor, found by watching calls.

    The Linears of one family of experts share an input whatever they are called with, and whether they are called or
    not: a router need not send a token to each of them. Families are in one group where each expert is called with the
    same tensors in both.

    Attributes:
        members: names of the Linears of each group by the name of its first one; a Linear that was not called is in
            none, and those of experts are in none.
        inputs: input of each group by the name of its first Linear, then by number of the window.
        repeated: Linears that were called several times in a window; their input is all tokens of it.
        experts: inputs of experts, in the order of their calls.
        expert_inputs: what each Linear of the first family of each such input was given, by its name, then by number of
            the window; a Linear may be called several times in a window.
    """

    def __init__(self) -> None:
        self.members: dict[str, list[str]] = {}
        self.inputs: dict[str, dict[int, Tensor]] = {}
        self.repeated: set[str] = set()
        self.experts: list[ExpertInput] = []
        self.expert_inputs: Calls = {}

    @contextmanager
    def watch(self, linears: dict[str, nn.Linear], families: Sequence[Family] = ()) -> Iterator[None]:
        """Within it calls of `linears` are watched; after it the attributes are filled.

        Args:
            linears: the Linears of a layer by name.
            families: names of those that belong to experts.
        """
        seen: Calls = {}  # in the order of calls, which is the same in every window

        def hook(name: str) -> Any:
            def see(_: nn.Module, args: tuple[Tensor, ...]) -> None:
                if not is_routed_call():
                    seen.setdefault(name, {}).setdefault(current_window(), []).append(args[0])

            return see

        handles = [linear.register_forward_pre_hook(hook(name)) for name, linear in linears.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        of_experts = {name for family in families for name in family}
        for name, calls in seen.items():
            if name not in of_experts:
                self._add(name, {window: _joined(inputs) for window, inputs in calls.items()})
                self.repeated |= {name} if any(len(inputs) > 1 for inputs in calls.values()) else set()
        self._add_experts(families, {name: seen[name] for name in seen if name in of_experts})

    def _add(self, name: str, calls: dict[int, Tensor]) -> None:
        for leader, inputs in self.inputs.items():
            if all(inputs.get(window) is x for window, x in calls.items()):
                self.members[leader].append(name)
                return
        self.members[name], self.inputs[name] = [name], calls

    def _add_experts(self, families: Sequence[Family], seen: Calls) -> None:
        place = {name: number for number, name in enumerate(seen)}
        called = [family for family in families if any(name in seen for name in family)]
        for family in sorted(called, key=lambda family: min(place.get(name, len(place)) for name in family)):
            for number, known in enumerate(self.experts):
                if _same(known.families[0], family, seen):
                    self.experts[number] = ExpertInput((*known.families, family))
                    break
            else:
                self.experts.append(ExpertInput((family,)))
        for known in self.experts:
            self.expert_inputs |= {name: seen[name] for name in known.families[0] if name in seen}


def _joined(inputs: list[Tensor]) -> Tensor:
    """The tokens of several calls in one window; of a single call its very tensor, by which groups are found."""
    return inputs[0] if len(inputs) == 1 else torch.cat([x.reshape(-1, x.shape[-1]) for x in inputs])


def _same(one: Family, other: Family, seen: Calls) -> bool:
    """Whether each expert was called with the same tensors in both families."""

    def tensors(name: str) -> dict[int, list[int]]:
        return {window: [id(x) for x in inputs] for window, inputs in seen.get(name, {}).items()}

    return len(one) == len(other) and all(tensors(a) == tensors(b) for a, b in zip(one, other, strict=True))
