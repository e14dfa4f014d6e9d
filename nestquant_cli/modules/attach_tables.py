"""Puts the quantized embedding and head of a layout into a model."""

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ..base.errors import NestQuantError
from ..codecs.registry import codec_of
from .embedding import quantized_embedding, tie
from .inputs import InputQuantizer
from .layout import Layout
from .linear import QuantizedLinear
from .table_layout import TableLayout
from .untie import untie


def attach_tables(model: PreTrainedModel, layout: Layout) -> None:
    """Replaces every embedding and head named in the layout by an empty quantized one.

    A model of the same layers with another head, such as a classifier, takes the embedding alone.

    Raises:
        NestQuantError: the layout and the model do not fit each other.
    """
    if not layout.tables:
        return
    head = model.get_output_embeddings()
    for name, table in layout.tables.items():
        untie(model, f"{name}.weight", f"{table.head}.weight")
        source = InputQuantizer(table.columns, layout.rotation_seed, None)
        if not table.embedding:
            if head is not None:
                _put_head(model, name, table, source)
            continue
        original = _module_at(model, name)
        if not isinstance(original, nn.Embedding) or tuple(original.weight.shape) != (table.rows, table.columns):
            raise _misfit(name, table, "embedding")
        embedding = quantized_embedding(original, table.code, source)
        _replace(model, name, embedding)
        if table.head is not None and head is not None:
            tie(embedding, _put_head(model, table.head, table, source))


def _put_head(model: PreTrainedModel, name: str, table: TableLayout, source: InputQuantizer) -> QuantizedLinear:
    original = _module_at(model, name)
    if not isinstance(original, nn.Linear) or tuple(original.weight.shape) != (table.rows, table.columns):
        raise _misfit(name, table, "head")
    weight, bias, code = original.weight, original.bias, table.code
    kind: Any = codec_of(code).linear
    module: QuantizedLinear = kind(
        table.columns, table.rows, bias is not None, source, code, weight.dtype, weight.device
    )
    if bias is not None:
        module.bias = nn.Parameter(bias.detach(), requires_grad=False)
    _replace(model, name, module)
    return module


def _module_at(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _misfit(name: str, table: TableLayout, kind: str) -> NestQuantError:
    return NestQuantError(
        f"config.json names a quantized {kind} {name} of shape {(table.rows, table.columns)}, which the model does not "
        "have",
        "the checkpoint was not loaded",
        "fetch or quantize the checkpoint again",
    )
