"""Compares a packed checkpoint with the model it was made from: errors of its matrices, and what is not quantized."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..base.errors import NestQuantError
from ..codecs.registry import decoded
from ..codecs.weights import WeightCode
from ..models.load import load_unpacked_model, stored_tensors
from ..models.source import Source, resolve
from ..models.structure import open_decoder
from ..models.tensor_reader import TensorReader
from ..modules.layout import LinearLayout
from ..rotation.reflections import AnyRotation

TOLERANCE = 1e-3  # between recorded and recomputed relative error, as a fraction; sums of float32 differ by 1e-5


def load_original(model: str, dtype: str = "auto") -> PreTrainedModel:
    """The original model on the CPU, in the dtype that it was quantized from, its matrices named as packed ones are.

    Raises:
        NestQuantError: it cannot be loaded, or is a packed checkpoint itself.
    """
    source = resolve(model)
    if source.kind == "packed":
        raise NestQuantError(
            f"{model} is a packed checkpoint", "the checkpoint was not compared with it", "give the original model"
        )
    original = load_unpacked_model(source, dtype)
    if not source.gguf_file:
        _read_padding(original, source)
    open_decoder(original)
    return original


@torch.no_grad()
def _read_padding(model: PreTrainedModel, source: Source) -> None:
    """Gives embeddings the rows of their padding tokens that the files have.

    Some classes of transformers zero that row whenever they are loaded, and checkpoints have it as it was.
    """
    tables = {
        f"{name}.weight": module
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and module.padding_idx is not None
    }
    zeroed = {name: table for name, table in tables.items() if not table.weight[table.padding_idx].any()}
    with suppress(Exception):  # of converters, whose tensors cannot be read one by one
        reader: Any = TensorReader(model, stored_tensors(source)) if zeroed else {}
        for name, table in zeroed.items():
            if name in reader:
                table.weight[table.padding_idx] = reader.read(name, table.weight.dtype)[table.padding_idx]


def relative_error(weight: Tensor, tensors: Mapping[str, Tensor], code: WeightCode, rotation: AnyRotation) -> float:
    """‖Ŵ − W‖² / ‖W‖² in the rotated basis, padding included, as the quantizer records it.

    Args:
        weight: (out, in) the original.
        tensors: stored tensors of the packed matrix by name.
        code: code of the packed matrix.
        rotation: rotation of its inputs.
    """
    n = rotation.order
    W = rotation.apply(F.pad(weight.detach().float(), (0, n - weight.shape[1])))
    rounded = decoded(code, tensors, n)
    power = float(W.square().sum(dtype=torch.float64))
    return float((rounded - W).square().sum(dtype=torch.float64)) / power if power > 0 else 0.0


def matrix_problem(
    model: PreTrainedModel, name: str, linear: LinearLayout, recorded: float, measure: Callable[[Tensor], float]
) -> tuple[float | None, str | None]:
    """The recomputed relative error of one matrix, and how it or the matrix differs from the record.

    Args:
        model: the original.
        name: name of the matrix.
        linear: layout of the matrix.
        recorded: relative error in the report.
        measure: from the original weight to the error.
    """
    try:
        module: nn.Module | None = model.get_submodule(name)
    except AttributeError:
        module = None
    shape = (linear.out_features, linear.in_features)
    if not isinstance(module, nn.Linear | nn.Embedding) or tuple(module.weight.shape) != shape:
        return None, f"the original model has no matrix {name} of shape {shape}"
    found = measure(module.weight)
    if abs(found - recorded) > TOLERANCE * max(found, recorded):
        return found, f"its relative error is {found:.6g}, the report records {recorded:.6g}"
    return found, None


def relative_change(before: Tensor, after: Tensor) -> float:
    """‖after − before‖² / ‖before‖², of a tensor that is tuned; over 1 where it was zero."""
    before, after = before.detach().cpu().double(), after.detach().cpu().double()
    return float((after - before).square().sum()) / (float(before.square().sum()) or 1.0)


def kept_problem(originals: dict[str, Tensor], name: str, data: bytes, change: float | None) -> str | None:
    """How a tensor that is not quantized differs from the original's.

    Args:
        originals: tensors of the original by name.
        name: name of the tensor.
        data: its bytes.
        change: recorded `relative_change` of a tensor that was tuned, None of any other.
    """
    if name not in originals:
        return "the original model has no such tensor"
    if change is not None:
        own = torch.frombuffer(bytearray(data), dtype=originals[name].dtype).view(originals[name].shape)
        found = relative_change(originals[name], own)
        alike = abs(found - change) <= TOLERANCE * max(found, change)
        return None if alike else f"its change from the original is {found:.6g}, the report records {change:.6g}"
    expected = originals[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return None if expected == data else "it differs from the original's"
