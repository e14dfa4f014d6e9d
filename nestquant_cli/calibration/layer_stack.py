"""Runs a model's decoder layers one at a time on many windows, without knowing the model.

The model's own forward prepares everything around the stack (embeddings, masks, position embeddings). A forward with
recording layers shows what it hands to each layer (`recorder`); after that each layer is called directly with that and
the hidden states, so that one layer at a time is enough.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn

from ..base.device import threads_of
from ..base.memory import return_blocks
from ..models.language_model import runner
from ..models.weights import Weights
from ..modules.cache_hooks import give_cache
from ..parallel.tiles import run_pieces
from .current_window import in_window
from .hidden_states import HiddenStates
from .kv_observer import KVObserver
from .recorder import Recorder, Stop
from .window_arguments import WindowArguments


def _stop(*_: Any) -> None:
    raise Stop


class LayerStack:
    """The decoder layers of a model with the hidden states of all windows in front of the next layer.

    Args:
        weights: weights of the model; whoever runs a layer has to hold it in memory.
        windows: (windows, tokens) int64 token ids, all windows of one length and without padding.
        observer: cache that attention is given; it sees all keys and values.
        hidden: empty store for the hidden states; None keeps them in memory up to the default budget.

    Attributes:
        hidden: hidden states, one tensor a window (1, tokens, width), with more dimensions where a model has several
            streams; on the CPU or in a file.

    Raises:
        NestQuantError: a layer is given what the model computes between its layers, or is not called exactly once.
    """

    def __init__(
        self, weights: Weights, windows: Tensor, observer: KVObserver, hidden: HiddenStates | None = None
    ) -> None:
        self.model, self.decoder, self.observer = weights.model, weights.decoder, observer
        self.device = weights.device
        self.hidden = HiddenStates() if hidden is None else hidden
        with weights.around(), weights.layer(0):
            recorder = Recorder(self.decoder, self._forward)
            self.arguments = WindowArguments(recorder, windows, self.hidden, self.device)

    def twin(self, hidden: HiddenStates) -> "LayerStack":
        """The same layers with a copy of the hidden states in `hidden`, before any layer has run."""
        other = copy.copy(self)
        other.hidden, other.arguments = hidden, self.arguments.twin()
        for states in self.hidden:
            hidden.append(states)
        return other

    def run(self, index: int, until: nn.Module | None = None, move: bool = True) -> Iterator[range]:
        """Takes all windows through layer `index`, a few at a time, each on a thread of its own.

        A layer that the model does not call for text leaves them as they are.

        Yields:
            numbers of the windows that have passed since the last yield.

        Args:
            index: number of the layer.
            until: module of the layer in front of which the run ends; the hidden states then stay as they were.
            move: whether the hidden states move behind the layer; if not, it can be run again.
        """
        layer, arguments, keep = self.decoder.layers[index], self.arguments, until is None and move
        called = index in arguments.plan.calls

        @torch.inference_mode()
        def through(number: int) -> None:
            with in_window(number), suppress(Stop):
                hidden = self.hidden[number].to(self.device)
                after[number] = arguments.through(layer, index, number, hidden, keep).cpu()

        at_once = threads_of(self.device)
        for start in range(0, len(self.hidden), at_once):
            after: dict[int, Tensor] = {}
            numbers = range(start, min(start + at_once, len(self.hidden)))
            checked = arguments.unchanged(index) if called and keep and not start else nullcontext()
            stop = nullcontext() if until is None else until.register_forward_pre_hook(_stop)
            with checked, stop, self._observed(index):
                run_pieces(through, numbers if called else ())
            for number, hidden in after.items() if keep else ():
                self.hidden[number] = hidden
            yield numbers
        if keep:
            arguments.drop(index)
        return_blocks()

    @torch.inference_mode()
    def run_once(self, index: int) -> None:
        """Takes the first window through layer `index` on this thread; nothing is kept, and no key is observed."""
        if index in self.arguments.plan.calls:
            layer, hidden = self.decoder.layers[index], self.hidden[0].to(self.device)
            self.arguments.through(layer, index, 0, hidden, keep=False)

    def _forward(self, window: Tensor) -> None:
        _, base = runner(self.model, self.decoder.prefix)  # without the head, as logits are not needed
        base(input_ids=window.to(self.device), use_cache=False)

    @contextmanager
    def _observed(self, index: int) -> Iterator[None]:
        """Within it the layer's attention updates the observer; no layer keeps anything from one window to the next."""
        handles = give_cache([self.decoder.layers[index]] if self.observer.sees(index) else [], self.observer)
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
