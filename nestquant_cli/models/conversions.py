"""What transformers makes of the tensors in a model's files: names changed, experts joined, matrices split or turned.

`from_pretrained` renames entries of the files, and puts some of them through converters, each of which makes one or
several tensors of the model from one or many entries. `origins` walks the names as it does, with transformers' own
renamings and converters, and says for each tensor of a model of which entries it is made, so that a single one can be
made without the others. Converters are tried on tensors without memory, which gives names and shapes.
"""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

Shapes = Mapping[str, tuple[int, ...]]
Read = Callable[[str], Tensor]


@dataclass
class Conversion:
    """A converter of transformers with the entries that it collects.

    Attributes:
        first: name in the model of the first tensor that it makes.
        converter: transformers' WeightConverter.
        config: configuration of the model.
        shapes: shapes of the model's tensors by name, which some operations ask for.
        sources: names of the entries in the files by pattern of the converter, in transformers' order.
        made: shapes of the tensors that it makes, by name in the model.
    """

    first: str
    converter: Any
    config: Any
    shapes: Shapes
    sources: dict[str, list[str]] = field(default_factory=dict)
    made: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def run(self, read: Read, expert: int | None = None) -> dict[str, Tensor]:
        """The tensors that it makes, by name in the model.

        Args:
            read: gives an entry of the files by name, or for `by_expert`, its part for the expert with dimension 0.
            expert: number of the expert, where only one is wanted: dimension 0 of each result has size 1.
        """
        converter, shapes = deepcopy(self.converter), self.shapes
        for pattern, names in self.sources.items():
            for name in names if expert is None or len(names) == 1 else [names[expert]]:
                converter.add_tensor(self.first, name, pattern, read(name))
        if expert is not None:
            shapes = {name: (1, *shape[1:]) for name, shape in shapes.items()}
        sizes = SimpleNamespace(get_parameter=lambda name: torch.empty(shapes[name], device="meta"), config=self.config)
        made = converter.convert(self.first, model=sizes, config=self.config)
        return {name: tensor[0] if isinstance(tensor, list) else tensor for name, tensor in made.items()}

    def entries(self) -> list[str]:
        """Names of all entries that it takes."""
        return [name for names in self.sources.values() for name in names]

    def merges(self) -> bool:
        """Whether its first operation joins one entry for each expert along a new dimension 0."""
        from transformers.core_model_loading import MergeModulelist

        first = self.converter.operations[0]
        return isinstance(first, MergeModulelist) and first.dim == 0

    def by_expert(self, stored: Shapes) -> bool:
        """Whether each expert's part of the results is made of that expert's part of the entries alone.

        Either the first operation joins one entry for each expert, or each entry has all experts in dimension 0; and
        no operation after that touches dimension 0.

        Args:
            stored: shapes of the entries by name.
        """
        from transformers.core_model_loading import Chunk, Concatenate, Interleave, Transpose

        experts = {shape[0] for shape in self.made.values() if len(shape) == 3}
        if len(experts) != 1 or any(len(shape) != 3 for shape in self.made.values()):
            return False
        count, merges = experts.pop(), self.merges()
        for names in self.sources.values():
            whole = len(names) == 1 and len(stored[names[0]]) == 3 and stored[names[0]][0] == count
            if not (len(names) == count > 1 if merges else whole):
                return False
        for operation in self.converter.operations[merges:]:
            dims = [vars(operation)[name] for name in ("dim", "dim0", "dim1") if name in vars(operation)]
            if type(operation) not in (Chunk, Concatenate, Interleave, Transpose) or min(dims) < 1:
                return False
        return True


@dataclass(frozen=True)
class Origin:
    """What one tensor of a model is made of.

    Attributes:
        shape: its shape after conversion.
        entry: name of the entry that holds it as it is; None where it is converted.
        conversion: what makes it otherwise.
        by_expert: whether one expert's part can be read alone.
    """

    shape: tuple[int, ...]
    entry: str | None = None
    conversion: Conversion | None = None
    by_expert: bool = True


def origins(model: PreTrainedModel, stored: Shapes) -> tuple[dict[str, Origin], set[str]]:
    """What each tensor of a model is made of, and what its files have besides.

    Args:
        model: the model with transformers' own modules, on any device.
        stored: shapes of the entries of its files by name.

    Returns:
        origins by name in the model, and the names, as transformers gives them, of entries that it has no place for.

    Raises:
        Exception: a tensor is there in two forms, or whatever a converter raises for entries that it cannot take.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    transforms = get_model_conversion_mapping(model)
    renamings = [each for each in transforms if isinstance(each, WeightRenaming)]
    converters = [each for each in transforms if isinstance(each, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    wanted, prefix = model.state_dict(), model.base_model_prefix
    shapes = {name: tuple(tensor.shape) for name, tensor in wanted.items()}
    found: dict[str, Origin] = {}
    unused: set[str] = set()
    conversions: dict[str, Conversion] = {}
    for entry in sorted(stored, key=dot_natural_key):
        name, pattern = rename_source_key(entry, renamings, converters, prefix, wanted)
        if name not in wanted and entry in wanted:
            name, pattern = rename_source_key(entry, [], [], prefix, wanted)
        if name not in wanted:
            unused.add(name)
        elif pattern is None:
            found.setdefault(name, Origin(stored[entry], entry))
        else:
            conversion = conversions.setdefault(name, Conversion(name, by_pattern[pattern], model.config, shapes))
            conversion.sources.setdefault(pattern, []).append(entry)
    if both := found.keys() & conversions.keys():
        raise ValueError(f"{min(both)} is in the files in two forms")
    for conversion in conversions.values():
        made = conversion.run(lambda name: torch.empty(stored[name], device="meta"))
        conversion.made = {name: tuple(tensor.shape) for name, tensor in made.items()}
        alone = conversion.by_expert(stored)
        found |= {name: Origin(shape, None, conversion, alone) for name, shape in conversion.made.items()}
    return found, unused
