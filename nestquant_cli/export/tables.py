"""The embedding and the head in an export: decoded, in 16 bits, as the tools that read it have no codes for them."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ..codecs.registry import decoded
from ..modules.inputs import padded_size
from ..modules.layout import Layout
from ..rotation.transform import rotation

_PIECE = 1 << 22  # entries that are decoded at a time


def table_weight(name: str, layout: Layout, stored: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    """The weight (rows, columns) that a coded table stands for.

    Args:
        name: name of the table.
        layout: layout of the checkpoint.
        stored: its stored tensors by the name that follows its own.
        dtype: dtype of the weight.
    """
    table = layout.tables[name]
    order = padded_size(table.columns)
    turn = rotation(order, layout.rotation_seed)
    weight = torch.empty(table.rows, table.columns, dtype=dtype)
    for start in range(0, table.rows, max(1, _PIECE // order)):
        part = slice(start, start + max(1, _PIECE // order))
        rows = decoded(table.code, {leaf: tensor[part] for leaf, tensor in stored.items()}, order)
        weight[part] = turn.inverse(rows)[:, : table.columns].to(dtype)
    return weight


def table_bytes(layout: Layout, dtype: torch.dtype) -> int:
    """Bytes of all tables as weights."""
    return dtype.itemsize * sum(math.prod((table.rows, table.columns)) for table in layout.tables.values())
