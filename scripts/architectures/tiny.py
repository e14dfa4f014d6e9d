"""Builds one tiny random model and saves it as a folder of the Hub."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from .configurations import configuration, reads_images


def auto_class(images: bool) -> Any:
    """The class of transformers that opens the model: for images with text, or for text."""
    return AutoModelForImageTextToText if images else AutoModelForCausalLM


def build(name: str) -> PreTrainedModel:
    """The random model of a case."""
    return random_model(configuration(name), reads_images(name))


def random_model(config: PretrainedConfig, images: bool) -> PreTrainedModel:
    """A random model in evaluation mode, for images with text or for text."""
    torch.manual_seed(0)
    model: PreTrainedModel = auto_class(images).from_config(config)
    randomize(model)
    return model.eval()


def open_model(folder: Path, images: bool) -> Any:
    """A saved model, original or packed, as users of transformers open it."""
    return auto_class(images).from_pretrained(folder).eval()


@torch.no_grad()
def randomize(model: PreTrainedModel) -> None:
    """Entries whose sizes give logits of some spread, whatever the family's own initialization is."""
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.weight.dim() == 2 and not module.weight.is_meta:
            module.weight.normal_(std=1 / math.sqrt(module.in_features))
        elif isinstance(module, Conv1D):
            module.weight.normal_(std=1 / math.sqrt(module.weight.shape[0]))
        elif isinstance(module, nn.Embedding):
            module.weight.normal_(std=0.3)
    for name, parameter in model.named_parameters():
        named = name.endswith(("weight", "bias", "gate", "scale")) and "dt_" not in name
        if parameter.dim() == 1 and (named or not parameter.any()):  # a scale that begins as zeros leaves nothing
            parameter.add_(torch.randn_like(parameter) * 0.1)
        elif parameter.dim() == 2 and not parameter.any():  # a projection outside nn.Linear that begins as zeros
            parameter.normal_(std=1 / math.sqrt(parameter.shape[0]))
        elif parameter.dim() == 3 and "conv" not in name:
            parameter.normal_(std=1 / math.sqrt(parameter.shape[-1]))
    head = model.get_output_embeddings()
    if getattr(head, "weight", None) is not None and not getattr(model.config, "tie_word_embeddings", False):
        head.weight.normal_(std=2 / math.sqrt(head.weight.shape[1]))
