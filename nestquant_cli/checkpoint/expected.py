"""The tensors that a packed checkpoint must have: those of the model that its config.json describes."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..models.size_limits import check_counts, describing, meta_model, refuse_depth
from ..modules.layout import Layout
from ..storage.files import read_json

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Expected:
    """What one tensor of a checkpoint must be.

    Attributes:
        shape: the tensor's shape.
        dtype: the tensor's dtype as torch names it; None for any floating point type.
        required: False for a tensor that is tied to another one, and so need not be stored.
    """

    shape: tuple[int, ...]
    dtype: str | None
    required: bool


def packed_model(config: "PretrainedConfig", layout: Layout) -> "PreTrainedModel":
    """Builds a packed model on the meta device, without memory for its tensors.

    Args:
        config: the model's configuration; more decoder layers than `layout` has parts are refused before any is built.
        layout: layout of the packed modules.

    Raises:
        NestQuantError: `config` describes no model, or one that the layout does not fit.
    """
    from ..modules.attach import attach

    refuse_depth(config, max(len(layout.linears), len(layout.cache)), "the packed parts that it names are")
    model = meta_model(config)
    with describing():
        attach(model, layout)
    return model


def expected_tensors(folder: Path, layout: Layout) -> dict[str, Expected]:
    """Builds the model without memory for its weights and reads off its tensors.

    Args:
        folder: folder of the checkpoint; only its config.json is read.
        layout: layout of its packed modules.

    Raises:
        NestQuantError: config.json describes no model, or one that the layout does not fit.
    """
    from transformers import AutoConfig

    with describing():
        check_counts(read_json(folder / "config.json"))
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    model = packed_model(config, layout)
    tied = set(model.all_tied_weights_keys)
    return {name: _expected(tensor, name not in tied) for name, tensor in model.state_dict().items()}


def _expected(tensor: "Tensor", required: bool) -> Expected:
    dtype = None if tensor.is_floating_point() else str(tensor.dtype).removeprefix("torch.")
    return Expected(tuple(tensor.shape), dtype, required)
