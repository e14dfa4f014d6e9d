"""The names that a model's files have on the Hub, where its class in transformers has others.

A packed checkpoint has the names of transformers' class, which most models of vLLM have too, or rename by their own
mapper. Where the experts of a model have others, such as `block_sparse_moe` for `mlp`, all names are brought into the
form that `save_pretrained` would write, by transformers' own table.
"""

from collections.abc import Iterable
from typing import Any


class HubNames:
    """From the names of transformers' class to those on the Hub.

    Args:
        model_types: `model_type` of a model's configuration, and of its text model.
        names: names of its coded matrices.

    Attributes:
        renamings: transformers' WeightRenamings, in the order to apply them; none where no name of an expert changes.
    """

    def __init__(self, model_types: Iterable[str], names: Iterable[str]) -> None:
        self.renamings: list[Any] = []
        experts = [name for name in names if name.endswith(".expert_0")]
        if experts:
            # Where all experts are one tensor on the Hub, its name is no place for those of one expert.
            found = [each for each in _reversed(model_types) if all(_keeps_matrix(each, name) for name in experts)]
            if any(_renamed(name, found) != name for name in experts):
                self.renamings = found

    def map_name(self, name: str) -> str:
        """The name on the Hub of a matrix or a tensor."""
        return _renamed(name, self.renamings)


def _reversed(model_types: Iterable[str]) -> list[Any]:
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping
    from transformers.core_model_loading import WeightRenaming

    transforms = [each for kind in dict.fromkeys(model_types) for each in get_checkpoint_conversion_mapping(kind) or ()]
    return [each.reverse_transform() for each in transforms[::-1] if isinstance(each, WeightRenaming)]


def _keeps_matrix(renaming: Any, name: str) -> bool:
    """Whether a renaming leaves the name of an expert's matrix alone, after that of the module it is in."""
    return _renamed(name, [renaming]).endswith("." + ".".join(name.split(".")[-2:]))


def _renamed(name: str, renamings: Iterable[Any]) -> str:
    for renaming in renamings:
        name, _ = renaming.rename_source_key(name)
    return name
