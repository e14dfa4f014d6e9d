"""Reads the tensors of a model one by one from its files, under the names that they have in the opened model.

A tensor is an entry of a file, under its own name or one that transformers changes; a part of one, where an expert's
matrix is a slice of a 3-D tensor; the transposed of that; or what one of transformers' converters makes of several
entries. Of experts that are stored one by one, only the entries of the expert that is wanted are read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from .conversions import origins
from .experts import ExpertMatrices
from .shards import Entry, read_part, read_tensor, same_values


@dataclass(frozen=True)
class _Place:
    """Where a tensor of the opened model lies: its name before `as_linears`, which expert's part of it of how many it
    is, and whether it is transposed."""

    name: str
    expert: int = 0
    experts: int = 0
    transposed: bool = False


class TensorReader:
    """The tensors of one model in its files.

    Args:
        model: the model with transformers' own modules, before `as_linears`.
        stored: file and entry of every tensor of the files by name.

    Attributes:
        unused: names of tensors of the files that the model has no place for, as transformers renames them.

    Raises:
        Exception: whatever a converter of transformers raises for tensors that it cannot take.
    """

    def __init__(self, model: PreTrainedModel, stored: Mapping[str, tuple[Path, Entry]]) -> None:
        self._stored = stored
        self._origins, self.unused = origins(model, {name: entry.shape for name, (_, entry) in stored.items()})
        self._transposed = {name for name, module in model.named_modules() if isinstance(module, Conv1D)}
        self._places: dict[str, _Place] = {}
        self._last: tuple[str, torch.dtype, Tensor] | None = None  # experts that can only be made all at once

    def __contains__(self, name: str) -> bool:
        return name in self._places or name in self._origins

    def misfit(self, model: PreTrainedModel) -> str | None:
        """How the tensors that the model needs differ from those in the files; None where they do not."""
        for name, tensor in model.state_dict().items():
            if name in self._origins and self._origins[name].shape != tuple(tensor.shape):
                return f"{name} has another shape in its file"
            if name not in self._origins and name not in model.all_tied_weights_keys:
                return f"its files have no {name}"
        return None

    def follow(self, model: PreTrainedModel) -> None:
        """Takes the names that the model's matrices have after `as_linears`."""
        for owner, module in model.named_modules():
            if isinstance(module, ExpertMatrices):
                for expert, name in enumerate(module._modules):
                    self._places[f"{owner}.{name}.weight"] = _Place(owner, expert, len(module), module.transposed)
            elif owner in self._transposed and not isinstance(module, Conv1D):
                self._places[f"{owner}.weight"] = _Place(f"{owner}.weight", transposed=True)

    def read(self, name: str, dtype: torch.dtype) -> Tensor:
        """A tensor of the model by its name, contiguous in new memory on the CPU.

        Raises:
            NestQuantError: a file is cut short or cannot be read.
        """
        place = self._places.get(name, _Place(name))
        tensor = self._part(place, dtype) if place.experts else self._whole(place.name, dtype)
        return (tensor.t() if place.transposed else tensor).contiguous()

    def same(self, one: str, other: str, dtype: torch.dtype) -> bool:
        """Whether two tensors of the model are equal in shape and, as `dtype`, in every entry of the files."""
        entries = [self._origins[name].entry for name in (one, other)]
        if None not in entries:
            first, second = (self._stored[entry] for entry in entries if entry is not None)
            return same_values(first, second, dtype)
        tensors = [self.read(name, dtype) for name in (one, other)]
        return tensors[0].shape == tensors[1].shape and torch.equal(*tensors)

    def _whole(self, name: str, dtype: torch.dtype) -> Tensor:
        origin = self._origins[name]
        if origin.conversion is None:
            assert origin.entry is not None
            return self._entry(origin.entry, dtype)
        return origin.conversion.run(lambda entry: self._entry(entry, dtype))[name]

    def _part(self, place: _Place, dtype: torch.dtype) -> Tensor:
        """The matrix of one expert, as its parameter has it."""
        origin, expert, experts = self._origins[place.name], place.expert, place.experts
        conversion, matrices = origin.conversion, (experts, -1, origin.shape[-1])
        if conversion is None:
            assert origin.entry is not None
            return read_part(*self._stored[origin.entry], expert, experts).to(dtype).view(matrices[1:])
        if not origin.by_expert:
            return self._all_experts(place.name, dtype).view(matrices)[expert].clone()
        if conversion.merges():
            return conversion.run(lambda entry: self._entry(entry, dtype), expert)[place.name][0]
        parts = conversion.run(lambda entry: read_part(*self._stored[entry], expert, experts).to(dtype), expert)
        return parts[place.name][0]

    def _all_experts(self, name: str, dtype: torch.dtype) -> Tensor:
        """A parameter of all experts, which is kept until another one is wanted: they are read one after the other."""
        last = self._last
        if last is None or last[:2] != (name, dtype):
            self._last = None  # its memory is free before the next one is made
            last = self._last = name, dtype, self._whole(name, dtype)
        return last[2]

    def _entry(self, entry: str, dtype: torch.dtype) -> Tensor:
        return read_tensor(*self._stored[entry]).to(dtype)
