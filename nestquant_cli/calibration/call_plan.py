"""Which arguments of the decoder layers are the same for all windows, and where those come from that are not."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from .arguments import Box, Path, boxes, differing, leaves, same, value_of
from .recorder import Recorder, Recording, computed_between, unusable

Place = tuple[int, Path]  # an argument: number of the layer, path in (args, kwargs)
Call = tuple[tuple[Any, ...], dict[str, Any]]


class CallPlan:
    """Where the arguments of all layers come from.

    Args:
        recorder: runs the model's forward.
        windows: (windows, tokens) int64 token ids; the first two are compared.

    Attributes:
        calls: the arguments of each called layer for the first window, as a tree.
        carried: arguments that an earlier layer returned.
        varying: arguments that depend on the text.
        shared: lists and mappings that several layers are given: first place of each by all its places.
        last_returned: last layer that is given each tensor of `carried`.
        last_shared: last layer that is given each of `shared`.
        constant: the arguments of each layer that is given the same for all windows.

    Raises:
        NestQuantError: an argument is computed between the layers from what they returned.
    """

    def __init__(self, recorder: Recorder, windows: Tensor) -> None:
        self._name = recorder.decoder.layer_name
        first = recorder.record(windows[:1])
        self.calls, self.carried = first.calls, first.carried
        self.varying: set[Place] = set()
        other = recorder.record(windows[:1], other=True)
        for index, _ in self._differing(other):
            raise computed_between(self._name(index))
        self.shared = dict(self._shared())
        self.last_returned, self.last_shared = _last_uses(self.carried), _last_uses(self.shared)
        if len(windows) > 1:
            self.sees_more(recorder.record(windows[1:2]))
        self.constant = self._constant()

    @property
    def grows(self) -> bool:
        """Whether something is kept for each window besides its hidden states."""
        return bool(self.varying or self.carried or self.shared)

    def sees_more(self, recording: Recording) -> bool:
        """Whether a recording of another window has arguments that differ and are not known to; now they are."""
        more = set(self._differing(recording)) - self.varying
        self.varying |= more
        if more:
            self.constant = self._constant()
        return bool(more)

    def _differing(self, recording: Recording) -> Iterator[Place]:
        if recording.calls.keys() != self.calls.keys() or recording.carried != self.carried:
            raise unusable("the decoder layers that are called depend on the text")
        compared: dict[tuple[int, int], bool] = {}

        def equal(one: Any, found: Any) -> bool:
            pair = id(one), id(found)
            if pair not in compared:
                compared[pair] = same(one, found)
            return compared[pair]

        for index, call in self.calls.items():
            for path in differing(call, recording.calls[index], equal):
                if (index, path) not in self.carried:
                    self._refuse_objects(index, path, call)
                    yield index, path

    def _refuse_objects(self, index: int, path: Path, call: Any) -> None:
        found = [leaf for place, leaf in leaves(call) if place == path]
        if not found or not isinstance(found[0], Tensor | int | float | str | None):
            kind = type(found[0]).__name__ if found else "container"
            raise unusable(f"{self._name(index)} is given a {kind} that depends on the text")

    def _shared(self) -> Iterator[tuple[Place, Place]]:
        """Lists and mappings that more than one call has, or that are of a kind of the model's own."""
        found: dict[int, list[tuple[Place, Box]]] = {}
        for index, (args, kwargs) in self.calls.items():
            inner = [*boxes(args, (0,))]
            inner += [item for key, value in kwargs.items.items() for item in boxes(value, (1, key))]
            for path, box in inner:
                found.setdefault(id(box.original), []).append(((index, path), box))
        for places in found.values():
            key, first = places[0]
            if len(places) == 1 and type(first.original) in (list, dict):
                continue
            for (index, path), box in places:
                if any(differing(first, box, same)):
                    raise unusable(f"{self._name(index)} is given a container that the model fills between its layers")
                yield (index, path), key

    def _constant(self) -> dict[int, Call]:
        unlike = {index for index, _ in (*self.varying, *self.carried, *self.shared)}
        return {
            index: value_of(call, lambda _, leaf: leaf) for index, call in self.calls.items() if index not in unlike
        }


def _last_uses(places: dict[Place, tuple[int, Path]]) -> dict[tuple[int, Path], int]:
    last: dict[tuple[int, Path], int] = {}
    for (index, _), key in places.items():
        last[key] = max(index, last.get(key, index))
    return last
