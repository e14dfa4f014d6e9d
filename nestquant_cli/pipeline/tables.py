"""Quantizes the embedding and the output head: rows of the vocabulary, each rounded by itself."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..base.errors import NestQuantError
from ..codecs.registry import codec_of
from ..codecs.weights import Shape, WeightCode
from ..models.tables import Table, find_tables
from ..modules.embedding import looks_up
from ..modules.inputs import padded_size
from ..modules.table_layout import TableLayout, table_from
from ..rotation.transform import Identity, Rotation, rotation
from .recipe import Recipe

TABLE_PIECE = 1 << 22  # entries that are rounded at a time: 16 MiB of float32
_SAMPLE = 4096  # rows that a code is fitted to


@dataclass(frozen=True)
class TablesPart:
    """Share of the embedding and the head in config.json and the report; empty where both stay in 16 bits.

    Attributes:
        layout: layout of each by the name of its module.
        report: record of each.
    """

    layout: dict[str, TableLayout] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        if not self.layout:
            return {}
        return {"layout": {name: table.to_dict() for name, table in self.layout.items()}, "report": self.report}

    @staticmethod
    def from_dict(value: dict[str, Any]) -> "TablesPart":
        """Reads what `to_dict` returned."""
        layout = {name: table_from(table) for name, table in value.get("layout", {}).items()}
        return TablesPart(layout, value.get("report", {}))


def refuse_tables(model: PreTrainedModel, recipe: Recipe) -> None:
    """Raises NestQuantError where the embedding or the head that a recipe wants quantized cannot be."""
    for table in find_tables(model, *recipe.wants_tables):
        module = model.get_submodule(table.name)
        if isinstance(module, nn.Embedding) and not looks_up(module):
            raise NestQuantError(
                f"the embedding {table.name} is a {type(module).__name__}, which looks its rows up in its own way",
                "nothing was quantized",
                "leave --embedding-bits out, and --head-bits where the head is tied to it",
            )


@torch.no_grad()
def quantize_tables(
    tables: list[Table], fetch: Callable[[str], Tensor], recipe: Recipe
) -> tuple[dict[str, Tensor], TablesPart]:
    """Rounds the rows of some tables.

    Args:
        tables: the tables of a model that are to be quantized.
        fetch: gives a tensor of the model by its full name.
        recipe: settings of the quantization.

    Returns:
        what is stored, by full names, on the CPU, and the share in config.json and the report.

    Raises:
        NestQuantError: a row is too large for a scale of 16 bits.
    """
    tensors, part = dict[str, Tensor](), TablesPart()
    for table in tables:
        shape = recipe.table_shape(table.part)
        assert shape is not None
        order, seed = padded_size(table.columns), None if recipe.rotation == "none" else recipe.seed
        pieces = _rounded(fetch(table.tensor), rotation(order, seed), shape, recipe.seed, table.name)
        code = pieces[0].code
        part.layout[table.name] = TableLayout(table.rows, table.columns, code, table.embedding, table.head)
        part.report[table.name] = _record(table, pieces)
        for leaf in pieces[0].tensors:
            tensors[f"{table.name}.{leaf}"] = torch.cat([piece.tensors[leaf] for piece in pieces])
    return tensors, part


class _Piece(NamedTuple):
    """Some rounded rows.

    Attributes:
        tensors: what is stored of them, on the CPU.
        code: code of the rows.
        record: counts for the report.
        error, power: ‖Ŵ − W‖² and ‖W‖².
    """

    tensors: dict[str, Tensor]
    code: WeightCode
    record: dict[str, Any]
    error: float
    power: float


def _rounded(weight: Tensor, rotate: Rotation | Identity, shape: Shape, seed: int, name: str) -> list[_Piece]:
    codec, order = codec_of(shape), rotate.order

    def rotated(rows: Tensor) -> Tensor:
        return rotate.apply(F.pad(rows.detach().float(), (0, order - rows.shape[1])))

    fitted = codec.fit_plain(rotated(weight[:: max(1, len(weight) // _SAMPLE)]), shape, seed)
    pieces = []
    for rows in weight.split(max(1, TABLE_PIECE // order)):
        W = rotated(rows)
        rounded = codec.round_plain(W, fitted)
        error, power = (float(each.square().sum(dtype=torch.float64)) for each in (rounded.values - W, W))
        if not math.isfinite(error):
            raise NestQuantError(
                f"a row of {name} is too large for float32 arithmetic",
                "nothing was quantized",
                "repair the model, or leave its embedding and its head in 16 bits",
            )
        tensors = {leaf: tensor.cpu() for leaf, tensor in rounded.tensors[0].items()}
        pieces.append(_Piece(tensors, rounded.codes[0], rounded.records[0], error, power))
    return pieces


def _record(table: Table, pieces: list[_Piece]) -> dict[str, Any]:
    """The record of a table: errors of the whole, and counts of its pieces added up. There are no statistics of what it
    is multiplied with, so the error of its outputs counts as that of its entries."""
    record, records = dict(pieces[0].record), [piece.record for piece in pieces]
    if "beta_histogram" in record:
        record["clipped_blocks"] = sum(each["clipped_blocks"] for each in records)
        histograms = [each["beta_histogram"] for each in records]
        record["beta_histogram"] = [sum(counts) for counts in zip(*histograms, strict=True)]
    power = math.fsum(piece.power for piece in pieces)
    error = math.fsum(piece.error for piece in pieces) / power if power > 0 else 0.0
    errors = {"shape": [table.rows, table.columns], "relative_error": error, "hessian_error": error}
    return errors | record | {"damping": 0.0, "dead_inputs": 0}
