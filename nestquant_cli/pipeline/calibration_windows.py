"""The calibration windows of a recipe, and what is recorded of them and of their text."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..calibration.text import load_text
from ..calibration.windows import Windows, sample_windows
from ..models.vocabulary import known_tokens, refuse_long_windows, refuse_unknown_tokens
from .original_model import OriginalModel
from .recipe import Recipe

NOTHING = "nothing was quantized"
TEXT_KEYS = (
    "dataset",
    "text_sha256",
    "tokens_sha256",
    "samples",
    "seqlen",
    "bos",
    "window_start",
    "text_field",
    "chat_template_sha256",
)  # keys of what `text_of` returns


def read_windows(original: OriginalModel, recipe: Recipe) -> Windows:
    """Reads the calibration windows of a recipe.

    Raises:
        NestQuantError: the text cannot be read, or the model does not know a token of it.
    """
    model = original.weights.model
    refuse_long_windows(recipe.seqlen, model.config, NOTHING)
    text = load_text(recipe.dataset, "train", original.tokenizer, recipe.text_field)
    windows = sample_windows(text, original.tokenizer, recipe.seqlen, recipe.samples, recipe.seed, recipe.bos)
    refuse_unknown_tokens(int(windows.ids.max()), known_tokens(model), NOTHING)
    return windows


def other_windows(
    original: OriginalModel, recipe: Recipe, text: Mapping[str, Any], samples: int, seqlen: int
) -> Windows:
    """Reads windows of the recipe's text in another number and size, for what is measured besides.

    Args:
        original: the model.
        recipe: settings of the quantization.
        text: records of the calibration text, as `text_of` returns them; they win over the recipe's.
        samples: number of windows.
        seqlen: tokens in each.

    Raises:
        NestQuantError: as `read_windows`.
    """
    read = {name: text[name] for name in ("dataset", "text_field", "bos")}
    return read_windows(original, replace(recipe, samples=samples, seqlen=seqlen, **read))


def text_of(windows: Windows) -> dict[str, Any]:
    """Records of the calibration text and its windows for reports, config.json and keys of runs, JSON-ready."""
    return {
        "dataset": windows.text.name,
        "text_sha256": windows.text.sha256,
        "tokens_sha256": windows.sha256,
        "samples": windows.samples,
        "seqlen": windows.seqlen,
        "bos": windows.bos,
        "window_start": list(windows.start),
        "text_field": windows.text.field,
        "chat_template_sha256": windows.text.template,
    }
