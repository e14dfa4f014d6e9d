"""Records what a model's own forward hands to its decoder layers, while the layers compute nothing."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..base.errors import NestQuantError
from ..models.structure import Decoder
from .arguments import Path, memory_of, tree_of, value_of

Source = tuple[int, Path]  # a tensor that a layer returned: number of the layer, path in what it returned


class Stop(Exception):  # noqa: N818 - ends a forward early, it is no error
    """Ends a forward whose rest is not needed."""


class Hidden:
    """Stands for the hidden states among recorded arguments."""


@dataclass
class Recording:
    """What one forward handed to the layers.

    Attributes:
        hidden: hidden states in front of the first layer.
        calls: (args, kwargs) of each called layer as a tree, with `Hidden` for the hidden states.
        carried: where an argument is a tensor that an earlier layer returned, by number of the layer and path.
    """

    hidden: Tensor | None = None
    calls: dict[int, Any] = field(default_factory=dict)
    carried: dict[tuple[int, Path], Source] = field(default_factory=dict)
    stand_ins: dict[tuple[Any, ...], tuple[Source, Tensor]] = field(default_factory=dict)


class Recorder:
    """Runs a model's forward with layers that return stand-ins of what they would return.

    The first layer computes once, to show what a layer returns.

    Args:
        decoder: the decoder layers.
        forward: runs the model's forward on one window (1, tokens) of token ids.

    Attributes:
        form: what the first layer returned, as a tree.
        main: path of the hidden states in it.
    """

    def __init__(self, decoder: Decoder, forward: Callable[[Tensor], object]) -> None:
        self.decoder, self._forward = decoder, forward
        self.form: Any = None
        self.main: Path = ()

    @torch.inference_mode()
    def record(self, window: Tensor, other: bool = False, last: int | None = None) -> Recording:
        """Records one forward.

        Args:
            window: (1, tokens) token ids.
            other: whether the stand-ins have other numbers, to show what depends on them.
            last: number of the layer after which the forward ends; None lets it end by itself.

        Raises:
            NestQuantError: layers are called more than once, in another order, or with something else than the hidden
                states that the layer before returned.
        """
        if self.form is None:
            self._run(window, Recording(), False, None)  # ends in the first layer
        recording = Recording()
        self._run(window, recording, other, last)
        if not recording.calls:
            raise unusable("the decoder layers are not called")
        return recording

    def _run(self, window: Tensor, recording: Recording, other: bool, last: int | None) -> None:
        def make(index: int, forward: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                self._see(recording, index, args, kwargs)
                if self.form is None:
                    self._learn(index, forward(*args, **kwargs))
                    raise Stop
                if index == last:
                    raise Stop
                return self._stand_in(recording, index, other)

            return call

        try:
            with forwards(self.decoder.layers, make), suppress(Stop):
                self._forward(window)
        except RuntimeError as error:
            if "single memory location" not in str(error):  # of a stand-in that something writes to
                raise
            raise unusable("the model changes hidden states between its decoder layers") from error

    def _see(self, recording: Recording, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        name = self.decoder.layer_name(index)
        if index in recording.calls:
            raise unusable(f"{name} is called more than once")
        hidden = args[0] if args else kwargs.get("hidden_states")
        if not isinstance(hidden, Tensor):
            raise unusable(f"{name} is not given hidden states as its first argument")
        before = max(recording.calls, default=None)
        if before is None:
            recording.hidden = hidden
        elif index < before:
            raise unusable(f"{name} is called after {self.decoder.layer_name(before)}")
        elif self._source(recording, hidden) != (before, self.main):
            raise unusable(f"{name} is given other hidden states than {self.decoder.layer_name(before)} returned")
        args, kwargs = ((Hidden(), *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": Hidden()})

        def leaf(path: Path, value: Any) -> Any:
            source = self._source(recording, value) if isinstance(value, Tensor) else None
            if source is not None:
                recording.carried[index, path] = source
            return value

        recording.calls[index] = tree_of((args, kwargs))
        value_of(recording.calls[index], leaf)

    def _source(self, recording: Recording, tensor: Tensor) -> Source | None:
        found = recording.stand_ins.get(memory_of(tensor))
        return None if found is None else found[0]

    def _learn(self, index: int, output: Any) -> None:
        self.form, self.main = tree_of(output), (0,) if isinstance(output, tuple | list) else ()
        if not isinstance(main_of(output), Tensor):
            raise unusable(f"{self.decoder.layer_name(index)} returns a {type(output).__name__}")

    def _stand_in(self, recording: Recording, index: int, other: bool) -> Any:
        """What layer `index` returns: tensors of the right shapes with one row of numbers in little memory."""

        def make(path: Path, value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            row = value[(slice(0, 1),) * (value.dim() - 1)] if value.dim() else value
            row = row.flip(-1) if other and value.dim() else row.clone()
            made = (row * 2 if other and row.is_floating_point() else row).expand(value.shape)
            recording.stand_ins[memory_of(made)] = ((index, path), made)
            return made

        return value_of(self.form, make)


def main_of(output: Any) -> Any:
    """The hidden states in what a layer returned."""
    return output[0] if isinstance(output, tuple | list) and output else output


@contextmanager
def forwards(layers: nn.ModuleList, make: Callable[[int, Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Within it the forward of each layer is make(index, forward)."""
    for index, layer in enumerate(layers):
        layer.forward = make(index, layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def unusable(cause: str) -> NestQuantError:
    """The error for a model whose layers cannot be run one after the other."""
    return NestQuantError(
        cause,
        "its inputs cannot be measured",
        "use a model whose decoder layers run once each, one after the other; docs/models.md lists those that work",
    )


def computed_between(name: str) -> NestQuantError:
    """The error for a layer, by its full name, whose arguments are made of what layers before it returned."""
    return unusable(f"{name} is given what the model computes between its layers")
