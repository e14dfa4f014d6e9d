"""The inputs of a run apart from the model: calibration text or a stored calibration, and records of all three.

Everything that can be refused before any work is done is refused here: caches that cannot be packed, text that cannot
be read, and a stored calibration of another model or of other settings.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from ..base.errors import NestQuantError
from ..base.processor import machine
from ..base.version import __version__
from ..calibration.store import FILE, Calibration
from ..calibration.windows import Windows
from ..codecs.registry import codec_of
from ..codecs.weights import Shape
from ..models.describe import describe
from ..storage.files import sha256_file
from .calibration_windows import TEXT_KEYS, read_windows, text_of
from .finish import versions
from .original_model import OriginalModel
from .recipe import Recipe

_TEXT_SETTINGS = ("dataset", "samples", "seqlen", "bos", "text_field")


@dataclass(frozen=True)
class RunInputs:
    """The calibration data of a run and what determines its result, JSON-ready but for the windows.

    Attributes:
        windows: calibration windows; None with a stored calibration.
        about: model and codes, which a calibration must share with the quantization that uses it, see `about_model`.
        text: the calibration text, see `calibration_windows.text_of`.
        stored: {"calibration_sha256": hash of the stored calibration}; empty without one.
        circumstances: versions, dtype and processor, see `circumstances`.
        origin: records of model and text for config.json, see `origin_of`.
    """

    windows: Windows | None
    about: dict[str, Any]
    text: dict[str, Any]
    stored: dict[str, Any]
    circumstances: dict[str, Any]
    origin: dict[str, Any]


def run_inputs(
    original: OriginalModel, recipe: Recipe, stored: Calibration | None = None, explicit: Collection[str] = ()
) -> RunInputs:
    """Reads the calibration text, or checks a stored calibration.

    Args:
        original: the model.
        recipe: settings of the quantization.
        stored: a finished calibration; None reads the recipe's text.
        explicit: settings of the recipe that the user asked for by name; those of the text must be the calibration's.

    Raises:
        NestQuantError: the text cannot be used, or the stored calibration is of another model or was made with other
            settings.
    """
    about, around = about_model(original, recipe), circumstances(original)
    if stored is None:
        windows = read_windows(original, recipe)
        text, hashed = text_of(windows), {}
    else:
        refuse_stored(recipe)
        asked = {name: getattr(recipe, name) for name in _TEXT_SETTINGS if name in explicit}
        always = {
            "tensor_parallel": recipe.tensor_parallel,
            "channel_scales": recipe.scales_channels,
            "key_scales": recipe.key_scales,
            "value_code": _code_key(recipe.shape("value")),
        }
        stored.check(about | always | asked)
        windows = None
        text = {key: stored.about.get(key) for key in TEXT_KEYS}
        hashed = {"calibration_sha256": sha256_file(stored.folder / FILE)}
    return RunInputs(windows, about, text, hashed, around, origin_of(original, about, text))


def refuse_stored(recipe: Recipe) -> None:
    """Raises NestQuantError for a recipe whose calibration cannot be stored: a sequential one depends on the quantized
    layers before, and with mixed rates of activations on the bits that are chosen first."""
    if recipe.sequential:
        raise NestQuantError(
            "a sequential calibration follows the quantization from layer to layer and cannot be stored",
            "nothing was calibrated",
            "run 'nestquant quantize --sequential' without a calibration, or leave sequential out",
        )
    if recipe.act_allocation == "mixed":
        raise NestQuantError(
            "the bits of activations are chosen before a calibration, which is therefore not stored",
            "nothing was calibrated",
            "run 'nestquant quantize --act-allocation mixed' without a calibration, or leave act_allocation out",
        )


def about_model(original: OriginalModel, recipe: Recipe) -> dict[str, Any]:
    """Hash of the model and settings that a calibration must share with a quantization that uses it, JSON-ready."""
    codes = {f"{part}_code": _code_key(recipe.shape(part)) for part in ("act", "kv", "value")}
    if codes["value_code"] == codes["kv_code"]:
        del codes["value_code"]
    if recipe.rotation == "learned":  # reflections are learned for the code of the weights
        codes["weight_code"] = _code_key(recipe.shape("weight"))
    return {
        "model_sha256": original.sha256,
        "seed": recipe.seed,
        "rotation": recipe.rotation,
        "reflections": recipe.reflections if recipe.rotation == "learned" else 0,
        "centering": recipe.centering,
        **({"channel_scales": True} if recipe.scales_channels else {}),
        **({"key_scales": True} if recipe.key_scales else {}),
        **({"all_experts": True} if recipe.all_experts else {}),
        **({"tensor_parallel": recipe.tensor_parallel} if recipe.tensor_parallel > 1 else {}),
        **codes,
        "nestquant": __version__,
    }


def origin_of(original: OriginalModel, about: dict[str, Any], text: dict[str, Any]) -> dict[str, Any]:
    """Records of model and text for config.json: hashes, text, the model in words, its Hub id and commit, and the dtype
    that was asked for."""
    hub, dtype = original.source.hub, original.dtype
    return {
        **about,
        **text,
        "model": describe(original.source, "bfloat16" if dtype == "auto" else dtype),
        "dtype": dtype,
        "base_model": hub and hub.repo,
        "base_commit": hub and hub.sha,
    }


def circumstances(original: OriginalModel) -> dict[str, Any]:
    """Versions, dtype and kind of processor, on which the last bits of a result depend: a run is resumed under the same
    ones only."""
    return {"versions": versions(), "dtype": original.dtype, **machine(str(original.weights.device))}


def _code_key(shape: Shape | None) -> Any:
    return None if shape is None else codec_of(shape).shape_key(shape)
