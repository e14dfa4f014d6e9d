"""Arguments of a layer as a tree: tuples, lists and mappings with leaves, each leaf at a path."""

import copy
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Path = tuple[Any, ...]  # keys and positions from the root of a tree
_DEPTH = 4  # attributes of attributes of … that are compared in objects that a model makes anew in every forward


@dataclass(frozen=True)
class Box:
    """A list or mapping among arguments as it was at one moment; whoever is given the original may change it.

    Attributes:
        original: the list or mapping.
        items: what was in it, as trees, by key or position.
    """

    original: Any
    items: dict[Any, Any]

    def filled(self, items: dict[Any, Any]) -> Any:
        """A new list or mapping of the original's kind with other items."""
        if isinstance(self.original, list):
            return list(items.values())
        made = copy.copy(self.original)
        made.clear()
        made.update(items)
        return made


def tree_of(value: Any) -> Any:
    """A value as it is now: tuples of trees, boxes and leaves. Tensors are not copied."""
    if type(value) is tuple:
        return tuple(map(tree_of, value))
    if isinstance(value, list):
        return Box(value, {number: tree_of(item) for number, item in enumerate(value)})
    if isinstance(value, MutableMapping):
        return Box(value, {key: tree_of(item) for key, item in value.items()})
    return value


def leaves(tree: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """The leaves of a tree with their paths."""
    items = tree.items if isinstance(tree, Box) else dict(enumerate(tree)) if type(tree) is tuple else None
    if items is None:
        yield path, tree
        return
    for key, item in items.items():
        yield from leaves(item, (*path, key))


def boxes(tree: Any, path: Path = ()) -> Iterator[tuple[Path, Box]]:
    """The outermost boxes of a tree with their paths."""
    if isinstance(tree, Box):
        yield path, tree
    elif type(tree) is tuple:
        for key, item in enumerate(tree):
            yield from boxes(item, (*path, key))


def value_of(
    tree: Any, leaf: Callable[[Path, Any], Any], box: Callable[[Path, Box], Any] = lambda *_: None, path: Path = ()
) -> Any:
    """The value that a tree stands for.

    Args:
        tree: the tree.
        leaf: gives the value of a leaf, from its path and the leaf.
        box: gives the value of a box, from its path and the box; None has it made anew from its items.
        path: path of the tree's root.
    """
    if type(tree) is tuple:
        return tuple(value_of(item, leaf, box, (*path, number)) for number, item in enumerate(tree))
    if not isinstance(tree, Box):
        return leaf(path, tree)
    made = box(path, tree)
    if made is not None:
        return made
    return tree.filled({key: value_of(item, leaf, box, (*path, key)) for key, item in tree.items.items()})


def differing(one: Any, other: Any, equal: Callable[[Any, Any], bool], path: Path = ()) -> Iterator[Path]:
    """Paths of the leaves in which two trees differ; of a whole branch where they have another form there.

    Args:
        one, other: the trees.
        equal: whether two leaves are equal, as `same`.
        path: path of the trees' roots.
    """
    kinds = type(one), type(other)
    if kinds == (tuple, tuple) and len(one) == len(other):
        for number, items in enumerate(zip(one, other, strict=True)):
            yield from differing(*items, equal, (*path, number))
    elif kinds == (Box, Box) and one.items.keys() == other.items.keys():
        for key, item in one.items.items():
            yield from differing(item, other.items[key], equal, (*path, key))
    elif {tuple, Box} & set(kinds) or not equal(one, other):
        yield path


def same(one: Any, other: Any, depth: int = _DEPTH) -> bool:
    """Whether two leaves are equal. Objects that no comparison is defined for are compared by their attributes."""
    if one is other:
        return True
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        alike = (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device)
        return alike and (memory_of(one) == memory_of(other) or torch.equal(one, other))
    if type(one) is not type(other):
        return False
    if isinstance(one, int | float | str | torch.dtype | torch.device):
        return bool(one == other)
    if not depth or not hasattr(one, "__dict__"):
        return any("__eq__" in vars(kind) for kind in type(one).__mro__[:-1]) and bool(one == other)
    mine, theirs = vars(one), vars(other)
    return mine.keys() == theirs.keys() and all(
        all(same(x, y, depth - 1) for x, y in zip(_flat(mine[key]), _flat(theirs[key]), strict=False))
        and len(_flat(mine[key])) == len(_flat(theirs[key]))
        for key in mine
    )


def _flat(value: Any) -> list[Any]:
    return [leaf for _, leaf in leaves(tree_of(value))]


def memory_of(tensor: Tensor) -> tuple[Any, ...]:
    """What two tensors have in common that are the same numbers in the same memory. An empty one is only itself."""
    place: Any = tensor.data_ptr() if tensor.numel() else id(tensor)
    if tensor.is_meta and tensor.numel():
        place = tensor.untyped_storage()._cdata, tensor.storage_offset()
    return place, tuple(tensor.shape), tensor.stride(), tensor.dtype
