"""Finds the matrices of a layout in the layers of a vLLM model, where other names stand and several may be one layer.

A layout has the names of the model in transformers, such as `model.layers.0.self_attn.q_proj`. vLLM calls the layer
`qkv_proj`, says by `packed_modules_mapping` what is in it, and may put other prefixes before it
(`WeightsMapper`, whose renames are applied here as vLLM applies them to the checkpoint's tensors).
"""

import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ...base.errors import NestQuantError


class Rows(NamedTuple):
    """Rows of one matrix in a layer of vLLM.

    Attributes:
        name: of the matrix, in the layout.
        outputs: numbers of the layer's outputs (q, k and v are three) that these rows are.
        rows: how many rows this process has.
    """

    name: str
    outputs: tuple[int, ...]
    rows: int


class Names:
    """The names of the matrices, and which layers of vLLM have taken them.

    Args:
        names: names in the layout.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._original = {name: name for name in names}  # by each name that vLLM may call it
        self._newest = dict(self._original)
        self._taken: dict[str, weakref.ref[Any]] = {}

    def rename(self, mapper: Any) -> None:
        """Adds the names that a WeightsMapper of vLLM gives; the earlier ones stay valid.

        Models inside models each bring their mapper, and some bring the same one again.
        """
        self._newest = {mapper.map_name(name) or name: original for name, original in self._newest.items()}
        self._original |= self._newest

    def of(self, prefix: str, packed: Mapping[str, Sequence[str]]) -> list[str]:
        """Names in the layout of the matrices of the layer `prefix`, in order; none where it is not quantized.

        Args:
            prefix: vLLM's name of the layer.
            packed: vLLM's `packed_modules_mapping`: what a fused layer is made of, by the last part of its name.

        Raises:
            NestQuantError: some of the matrices that are one layer in vLLM are quantized and others not.
        """
        if prefix in self._original:
            return [self._original[prefix]]
        parent, dot, last = prefix.rpartition(".")
        single = [f"{parent}{dot}{part}" for part in packed.get(last, ())]
        found = [self._original[name] for name in single if name in self._original]
        if found and len(found) < len(single):
            missing = next(name for name in single if name not in self._original)
            raise NestQuantError(
                f"{missing} is not quantized, and in vLLM one layer with matrices that are",
                "the checkpoint was not loaded",
                "use it in transformers",
            )
        return found

    def below(self, prefix: str) -> list[str]:
        """Names in the layout of all matrices inside the module `prefix`, such as experts."""
        return [original for name, original in self._original.items() if name.startswith(f"{prefix}.")]

    def take(self, names: Iterable[str], layer: Any) -> None:
        """Notes that a layer has these matrices.

        Raises:
            NestQuantError: another layer has one of them already.
        """
        for name in names:
            holder = self._taken.get(name)
            if holder is not None and holder() is not None and holder() is not layer:
                raise NestQuantError(
                    f"two layers of the model in vLLM have the matrix {name}",
                    "the checkpoint was not loaded",
                    "use it in transformers",
                )
            self._taken[name] = weakref.ref(layer)

    def untaken(self) -> list[str]:
        """Names in the layout that no layer has."""
        return [name for name in dict.fromkeys(self._original.values()) if name not in self._taken]


def split(names: Sequence[str], features: Mapping[str, int], sizes: Sequence[int], processes: int) -> list[Rows]:
    """Which of a layer's outputs each matrix is: usually one; all of them where it is fused in the checkpoint.

    Args:
        names: of the matrices, in the order of the outputs.
        features: rows of each matrix, by name.
        sizes: rows of each output in this process.
        processes: of a tensor-parallel model, among which rows are split.

    Raises:
        NestQuantError: the sizes do not fit.
    """
    if len(names) == 1:
        groups = [tuple(range(len(sizes)))]
    elif len(names) == len(sizes):
        groups = [(number,) for number in range(len(sizes))]
    else:
        groups = _grouped([features[name] for name in names], [size * processes for size in sizes])
    found = [
        Rows(name, group, sum(sizes[number] for number in group)) for name, group in zip(names, groups, strict=True)
    ]
    for name, _, rows in found:
        # Fewer heads of keys than processes: several processes have the same rows.
        if rows * processes < features[name] or features[name] % rows:
            raise _not_fitting(f"{features[name]} rows of {name} are {rows} for each of {processes} processes")
    return found


def _grouped(features: Sequence[int], sizes: Sequence[int]) -> list[tuple[int, ...]]:
    """Runs of `sizes`, one for each of `features` and with its sum."""
    groups, number = [], 0
    for rows in features:
        start = number
        while number < len(sizes) and sum(sizes[start:number]) < rows:
            number += 1
        groups.append(tuple(range(start, number)))
    if number < len(sizes) or any(
        sum(sizes[number] for number in group) != rows for group, rows in zip(groups, features, strict=True)
    ):
        raise _not_fitting(f"matrices of {list(features)} rows are one layer of {list(sizes)}")
    return groups


def _not_fitting(cause: str) -> NestQuantError:
    return NestQuantError(
        f"the checkpoint and its model in vLLM differ: {cause}", "it was not loaded", "use transformers"
    )
