"""Loads whatever a name means, a packed checkpoint or any other model."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..models.auto_class import auto_class
from ..models.load import check_dtype, load_unpacked_model
from ..models.source import Source, weight_files
from .manifest import read_manifest

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

logger = logging.getLogger("nestquant")


def load_model(source: Source, dtype: "str | torch.dtype" = "auto", device: str = "cpu") -> "PreTrainedModel":
    """Loads a model in eval mode on one device. Code that comes with a model is never run.

    Args:
        source: the model, packed or not.
        dtype: a torch dtype or its name; "auto" is the checkpoint's, and bfloat16 for GGUF, which is de-quantized.
        device: a torch device.

    Raises:
        NestQuantError: files are missing, truncated or altered, tensors are missing, the model is not a decoder, or
            there is no such dtype.
    """
    check_dtype(dtype)
    return (_load_packed if source.kind == "packed" else load_unpacked_model)(source, dtype, device)


def _load_packed(source: Source, dtype: "str | torch.dtype", device: str) -> "PreTrainedModel":
    from transformers import AutoConfig

    from .read import check_checkpoint

    folder = Path(source.path)
    if source.hub is not None:
        weight_files(source, read_manifest(folder)["files"])  # downloads them
    check_checkpoint(folder, tensors=False)  # files with tensors are hashed by the quantizer that transformers calls
    logger.info("loading %s", source.name)
    auto = auto_class(AutoConfig.from_pretrained(folder, trust_remote_code=False))
    model: Any = auto.from_pretrained(folder, dtype=dtype, trust_remote_code=False)
    return model.to(device).eval()
