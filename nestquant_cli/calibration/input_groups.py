"""Which Linears of a layer share an input, found by watching their calls."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from .current_window import current_window


class InputGroups:
    """Groups of Linears that are called with the very same tensor, found by watching calls.

    Attributes:
        members: names of the Linears of each group by the name of its first one; a Linear that was not called is in
            none.
        inputs: input of each group by the name of its first Linear, then by number of the window.
    """

    def __init__(self) -> None:
        self.members: dict[str, list[str]] = {}
        self.inputs: dict[str, dict[int, Tensor]] = {}

    @contextmanager
    def watch(self, linears: dict[str, nn.Linear]) -> Iterator[None]:
        """Within it calls of `linears` are watched; after it `members` and `inputs` are filled."""
        seen: dict[str, dict[int, Tensor]] = {}  # in the order of calls, which is the same in every window

        def hook(name: str) -> Any:
            def see(_: nn.Module, args: tuple[Tensor, ...]) -> None:
                seen.setdefault(name, {})[current_window()] = args[0]

            return see

        handles = [linear.register_forward_pre_hook(hook(name)) for name, linear in linears.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        for name, calls in seen.items():
            self._add(name, calls)

    def _add(self, name: str, calls: dict[int, Tensor]) -> None:
        for leader, inputs in self.inputs.items():
            if all(inputs.get(window) is x for window, x in calls.items()):
                self.members[leader].append(name)
                return
        self.members[name], self.inputs[name] = [name], calls
