"""The tensors that a packed checkpoint must hold, by name, shape and dtype: those of the model of its config.json."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import NestQuantError
from ..modules.layout import Layout

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Expected:
    """One tensor.

    Attributes:
        shape: of it.
        dtype: as torch names it; None for any floating point type.
        required: False where the model takes it from another tensor that it is tied to.
    """

    shape: tuple[int, ...]
    dtype: str | None
    required: bool


def expected_tensors(folder: Path, layout: Layout, most_layers: int) -> dict[str, Expected]:
    """Builds the model without memory for its weights and reads off its tensors.

    Args:
        folder: of the checkpoint; only config.json is read.
        layout: of its packed modules.
        most_layers: a config.json with more decoder layers is refused before any is built.

    Raises:
        NestQuantError: config.json describes no model, or one that the layout does not fit.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from ..modules.attach import attach

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        depth = config.get_text_config(decoder=True).num_hidden_layers
        if depth > most_layers:
            raise ValueError(f"it has {depth} layers, more than there are tensors")
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        attach(model, layout)
    except NestQuantError:
        raise
    except Exception as error:  # transformers raises of every kind where a field of config.json is unusable
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise NestQuantError(
            f"config.json describes no usable model ({reason})",
            "the tensors cannot be compared with it",
            "fetch or quantize the checkpoint again",
        ) from error
    tied = set(model.all_tied_weights_keys)
    return {name: _expected(tensor, name not in tied) for name, tensor in model.state_dict().items()}


def _expected(tensor: "Tensor", required: bool) -> Expected:
    dtype = None if tensor.is_floating_point() else str(tensor.dtype).removeprefix("torch.")
    return Expected(tuple(tensor.shape), dtype, required)
