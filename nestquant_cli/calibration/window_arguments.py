"""What each decoder layer is given besides its hidden states, for every window.

Most of it is the same for all windows, and is kept once. The rest is kept for each window: what depends on the text
(per-layer inputs, embeddings that every layer gets, masks made of tokens), what an earlier layer returned (indices,
router states), and what layers put into a list or mapping for later ones (shared keys and values).
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .arguments import Box, Path, leaves, memory_of, tree_of, value_of
from .call_plan import CallPlan, Place
from .hidden_states import HiddenStates
from .recorder import Recorder, Recording, Source, main_of, unusable
from .spill_file import Kept, KeptTensors

Filled = dict[Place, tuple[Any, dict[int, Any]]]  # boxes that a layer is given, and what is stored of each tensor in it


class WindowArguments:
    """Arguments of the layers for all windows.

    Args:
        recorder: runs the model's forward.
        windows: (windows, tokens) int64 token ids.
        hidden: empty store, which gets the hidden states in front of the first layer.
        device: device of the layers.

    Raises:
        NestQuantError: an argument is computed between the layers from what they returned, or a model does not call its
            layers once each in their order.
    """

    def __init__(self, recorder: Recorder, windows: Tensor, hidden: HiddenStates, device: torch.device) -> None:
        self.device, self._name = device, recorder.decoder.layer_name
        self.plan = CallPlan(recorder, windows)
        self._form = recorder.form
        if self.plan.grows:
            hidden.budget //= 2
        self._store = KeptTensors(hidden.budget, hidden.folder)
        self._texts: list[dict[Place, Any]] = []
        while not self._record_all(recorder, windows, hidden):
            self._texts = []
        self._returned: list[dict[Source, Any]] = [{} for _ in windows]
        self._boxes: list[dict[Place, Any]] = [{} for _ in windows]

    def twin(self) -> "WindowArguments":
        """The same before any layer has run; what depends on the text alone is shared."""
        other = copy.copy(self)
        other._returned, other._boxes = [{} for _ in self._texts], [{} for _ in self._texts]
        return other

    def through(self, layer: nn.Module, index: int, number: int, hidden: Tensor, keep: bool) -> Tensor:
        """Calls layer `index` on the hidden states of window `number`.

        Args:
            layer: the layer.
            index: its number.
            number: number of the window.
            hidden: hidden states in front of the layer, on its device.
            keep: whether what the layer hands on to later layers is to be kept.

        Returns:
            the hidden states behind the layer.
        """
        args, kwargs, filled = self._given(index, number)
        args, kwargs = ((hidden, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": hidden})
        output = layer(*args, **kwargs)
        if keep:
            self._keep_returned(index, number, output)
            self._keep_filled(number, filled)
        states: Tensor = main_of(output)
        return states

    def drop(self, index: int) -> None:
        """Forgets what no layer behind `index` is given."""
        plan = self.plan
        for all_kept, last in ((self._returned, plan.last_returned), (self._boxes, plan.last_shared)):
            for kept in all_kept:
                for key in [key for key in kept if last[key] <= index]:
                    del kept[key]

    @contextmanager
    def unchanged(self, index: int) -> Iterator[None]:
        """Refuses a layer `index` that changes tensors within it which all windows are given."""
        constants = [leaf for _, leaf in leaves(self.plan.calls[index]) if isinstance(leaf, Tensor)]
        before = [leaf.clone() for leaf in constants]
        yield
        if not all(map(torch.equal, constants, before)):
            raise unusable(f"{self._name(index)} changes the tensors that it is given")

    def _record_all(self, recorder: Recorder, windows: Tensor, hidden: HiddenStates) -> bool:
        """Keeps what depends on the text; False where a window shows that something else depends on it, too."""
        for number, window in enumerate(windows):
            recording = recorder.record(window[None], last=max(self.plan.calls))
            if self.plan.sees_more(recording):
                return False
            self._texts.append(self._text_of(recording))
            if number == len(hidden):
                assert recording.hidden is not None
                hidden.append(recording.hidden)
        return True

    def _text_of(self, recording: Recording) -> dict[Place, Any]:
        kept: dict[Any, Any] = {}
        texts: dict[Place, Any] = {}
        for index, call in recording.calls.items():
            for path, leaf in leaves(call):
                if (index, path) not in self.plan.varying:
                    continue
                if not isinstance(leaf, Tensor):
                    texts[index, path] = leaf
                    continue
                if memory_of(leaf) not in kept:
                    kept[memory_of(leaf)] = self._store.keep(leaf)
                texts[index, path] = kept[memory_of(leaf)]
        return texts

    def _given(self, index: int, number: int) -> tuple[tuple[Any, ...], dict[str, Any], Filled]:
        filled: Filled = {}
        if index in self.plan.constant:
            return *self.plan.constant[index], filled

        def leaf(path: Path, value: Any) -> Any:
            return self._loaded(self._stored((index, path), value, number))

        def box(path: Path, tree: Box) -> Any:
            key = self.plan.shared.get((index, path))
            if key is None:
                return None
            known: dict[int, Any] = {}

            def within(place: Path, value: Any) -> Any:
                stored = value if key in self._boxes[number] else self._stored((key[0], place), value, number)
                loaded = self._loaded(stored)
                known[id(loaded)] = stored
                return loaded

            tree = self._boxes[number].get(key, tree)
            filled[key] = value_of(tree, within, path=key[1]), known
            return filled[key][0]

        args, kwargs = value_of(self.plan.calls[index], leaf, box)
        return args, kwargs, filled

    def _stored(self, place: Place, value: Any, number: int) -> Any:
        source = self.plan.carried.get(place)
        return self._returned[number][source] if source is not None else self._texts[number].get(place, value)

    def _loaded(self, stored: Any) -> Any:
        return stored.get().to(self.device) if isinstance(stored, Kept) else stored

    def _keep_returned(self, index: int, number: int, output: Any) -> None:
        if isinstance(self._form, Tensor) and isinstance(output, Tensor):
            return
        expected, found = dict(leaves(self._form)), dict(leaves(tree_of(output)))
        unlike = [path for path in found if isinstance(found[path], Tensor) and not isinstance(expected[path], Tensor)]
        if expected.keys() != found.keys() or unlike:
            raise unusable(f"{self._name(index)} returns something else than the first layer")
        for path, value in found.items():
            if (index, path) in self.plan.last_returned:
                self._returned[number][index, path] = self._store.keep(value) if isinstance(value, Tensor) else value

    def _keep_filled(self, number: int, filled: Filled) -> None:
        for key, (box, known) in filled.items():

            def stored(_: Path, value: Any, known: dict[int, Any] = known) -> Any:
                if id(value) not in known:
                    known[id(value)] = self._store.keep(value) if isinstance(value, Tensor) else value
                return known[id(value)]

            tree = tree_of(box)
            if [id(value) for _, value in leaves(tree)] != list(known):
                made = value_of(tree, stored)
                self._boxes[number][key] = tree_of(made)
