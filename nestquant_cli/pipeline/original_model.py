"""The model, the text and the circumstances of a quantization, and what is refused of them before any work is done."""

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..base.errors import NestQuantError
from ..base.processor import machine
from ..base.version import __version__
from ..calibration.fit_settings import FitSettings
from ..calibration.text import load_text
from ..calibration.windows import Windows, sample_windows
from ..codecs.registry import codec_of
from ..codecs.weights import Shape
from ..models.describe import describe
from ..models.source import Source, fingerprint, load_tokenizer
from ..models.structure import refuse_stray_matrices
from ..models.vocabulary import known_tokens, refuse_long_windows, refuse_unknown_tokens
from ..models.weights import Weights, open_weights
from ..modules.cache import plain_layers
from ..parallel.team import Team, team
from .finish import versions
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
)  # of `text_of`


@dataclass(frozen=True)
class OriginalModel:
    """A model that is to be quantized; `dtype` is what was asked for, "auto" for its own."""

    source: Source
    weights: Weights
    tokenizer: PreTrainedTokenizerBase
    dtype: str = "auto"

    @property
    def depth(self) -> int:
        """Decoder layers."""
        return len(self.weights.decoder.layers)


def open_original(source: Source, device: str, dtype: str = "auto") -> OriginalModel:
    """Opens a model and refuses what cannot be quantized.

    Args:
        source: the model.
        device: where to compute.
        dtype: of the weights, "auto" for the model's own, "float32", "bfloat16" or "float16".

    Raises:
        NestQuantError: a packed checkpoint, an unsupported kind of model, or weights that are not finite.
    """
    if source.kind == "packed":
        raise NestQuantError(
            f"{source.name} is a packed checkpoint already", "nothing was quantized", "give the original model"
        )
    weights = open_weights(source, device, dtype)
    if getattr(weights.model.config, "quantization_config", None) is not None:
        raise NestQuantError(
            f"the weights of {source.name} are quantized already", "nothing was quantized", "give the original model"
        )
    refuse_stray_matrices(weights.model, weights.decoder)
    team().run_on_rank0(weights.refuse_unusable)
    return OriginalModel(source, weights, load_tokenizer(source), dtype)


def refuse_other_caches(original: OriginalModel, recipe: Recipe) -> None:
    """Raises NestQuantError when keys and values are to be packed and the model's cache keeps something else."""
    if recipe.shape("kv") is not None:
        plain_layers(original.weights.model.config.get_text_config(decoder=True))


def read_windows(original: OriginalModel, recipe: Recipe) -> Windows:
    """Calibration windows of a recipe.

    Raises:
        NestQuantError: the text cannot be read, or the model does not know a token of it.
    """
    model = original.weights.model
    refuse_long_windows(recipe.seqlen, model.config, NOTHING)
    text = load_text(recipe.dataset, "train", original.tokenizer, recipe.text_field)
    windows = sample_windows(text, original.tokenizer, recipe.seqlen, recipe.samples, recipe.seed, recipe.bos)
    refuse_unknown_tokens(int(windows.ids.max()), known_tokens(model), NOTHING)
    return windows


def text_of(windows: Windows) -> dict[str, Any]:
    """What is recorded of the calibration text and of the windows that were taken from it, JSON-ready."""
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


def about_model(original: OriginalModel, recipe: Recipe, group: Team) -> dict[str, Any]:
    """What a calibration must share with the quantization that uses it."""
    shapes = {part: recipe.shape(part) for part in ("act", "kv")}
    codes = {f"{part}_code": shape and _code_key(shape) for part, shape in shapes.items()}
    if recipe.rotation == "learned":  # on the weights as they are coded
        shape = recipe.shape("weight")
        codes["weight_code"] = shape and _code_key(shape)
    sha256 = group.run_on_rank0(lambda: fingerprint(original.source))
    return {
        "model_sha256": sha256,
        "seed": recipe.seed,
        "rotation": recipe.rotation,
        "reflections": recipe.reflections if recipe.rotation == "learned" else 0,
        "centering": recipe.centering,
        **codes,
        "nestquant": __version__,
    }


def origin_of(source: Source, about: dict[str, Any], text: dict[str, Any], dtype: str = "auto") -> dict[str, Any]:
    """What config.json says that a checkpoint was made from: hashes, text, the model in words and its commit, and the
    dtype that was asked for."""
    place = {"base_model": source.hub and source.hub.repo, "base_commit": source.hub and source.hub.sha}
    return {
        **about,
        **text,
        "model": describe(source, "bfloat16" if dtype == "auto" else dtype),
        "dtype": dtype,
        **place,
    }


def _code_key(shape: Shape) -> Any:
    return codec_of(shape).shape_key(shape)


def fit_settings(recipe: Recipe) -> FitSettings:
    shapes = recipe.shape("act"), recipe.shape("kv")
    return FitSettings(
        *shapes, recipe.seed, recipe.rotation, recipe.shape("weight"), recipe.reflections, recipe.centering
    )


def circumstances(original: OriginalModel) -> dict[str, Any]:
    """What else the last bits of a result depend on: half a run must not be finished under other ones."""
    return {"versions": versions(), "dtype": original.dtype, **machine(str(original.weights.device))}
