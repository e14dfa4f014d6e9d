"""Cache layers that are empty whenever somebody looks at one.

A cache whose layers are such keeps nothing: not keys and values, and not the states that hybrids keep besides
(recurrent, convolution, indexer). Every call starts as at the beginning of a text, and any number of threads may share
the cache. It needs no knowledge of what a layer keeps.
"""

from collections.abc import Iterable, Iterator
from typing import Any


class FreshLayers(list[Any]):
    """Layers of a cache, each a new empty one whenever it is read.

    Args:
        layers: layers that nothing was put into.
    """

    def __init__(self, layers: Iterable[Any]) -> None:
        super().__init__(layers)

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        return [_copy(layer) for layer in found] if isinstance(index, slice) else _copy(found)

    def __iter__(self) -> Iterator[Any]:
        return map(_copy, super().__iter__())


def _copy(layer: Any) -> Any:
    """A layer with what an empty one has; dictionaries of states are its own."""
    fresh = object.__new__(type(layer))
    fresh.__dict__.update({key: dict(value) if type(value) is dict else value for key, value in vars(layer).items()})
    return fresh
