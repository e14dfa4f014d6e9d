"""Which matrices of its decoder layers a packed checkpoint has in 16 bits, from headers, layout and report."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..base.errors import NestQuantError
from ..models.shards import Shard
from ..models.small_matrices import Staying
from ..modules.layout import Layout
from ..storage.files import read_json
from .byte_counts import layer_of
from .manifest import REPORT


def stacks_of(layout: Layout) -> tuple[str, ...]:
    """What the names of tensors of decoder layers begin with, such as `model.layers.`."""
    return tuple({f"{layer_of(name).rpartition('.')[0]}." for name in layout.linears}) or ("?",)


def stored_staying(folder: Path, layout: Layout, shards: Iterable[Shard]) -> Staying:
    """The matrices of decoder layers that are not quantized.

    Args:
        folder: checkpoint folder, whose report says which of them belong to Linears that are never called.
        layout: layout of the checkpoint.
        shards: its shards.
    """
    stacks, uncalled, found = stacks_of(layout), _uncalled(folder), []
    for name, entry in (item for shard in shards for item in shard.entries.items()):
        if name.startswith(stacks) and len(entry.shape) > 1 and not _packed(name, layout):
            own = name.removeprefix(f"{layer_of(name)}.")
            found.append((own, entry.shape, own in uncalled))
    return Staying.of(found, sum(linear.in_features * linear.out_features for linear in layout.linears.values()))


def _packed(name: str, layout: Layout) -> bool:
    module = name.rpartition(".")[0]
    return module in layout.linears or module in layout.reflections


def _uncalled(folder: Path) -> set[str]:
    try:
        matrices: Any = read_json(folder / REPORT)["staying"]["matrices"]
        return {matrix["name"] for matrix in matrices if matrix.get("uncalled")}
    except (NestQuantError, KeyError, TypeError, AttributeError):
        return set()  # the report is information only; verify says what is wrong with it
