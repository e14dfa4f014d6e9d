"""Checks of single settings of a recipe: names, ranges and types. `Recipe` checks what they mean together."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..base.errors import NestQuantError
from ..base.names import nearest
from ..calibration.windows import BOS_MODES
from ..codecs.registry import CODECS, VECTOR_CODECS
from ..e8.code import BLOCK
from ..e8.shape import MAX_INT8_WORD
from ..kernels.contract.constants import MOST_PATHS
from ..modules.layout import ROTATIONS
from ..modules.unrounded import MOST_TOKENS
from ..tuning.settings import TuneSettings
from .skipped_layers import layer_numbers

NOTHING = "nothing was quantized"
FEEDBACKS = ("none", "ldlq")
ALLOCATIONS = ("uniform", "mixed")
MOST_MIXED = MAX_INT8_WORD / BLOCK  # bits of activations on average, of which all products are exact int8 ones
OUTPUT_METRICS = ("none", "two-sided")
_CHOICES = {
    "method": CODECS,
    "act_method": VECTOR_CODECS,
    "rotation": ROTATIONS,
    "feedback": FEEDBACKS,
    "allocation": ALLOCATIONS,
    "act_allocation": ALLOCATIONS,
    "output_metric": OUTPUT_METRICS,
    "bos": BOS_MODES,
}
_FLAGS = ("qa", "centering", "channel_scales", "key_scales", "sequential", "all_experts", "tie_inputs")
_RANGES = (
    ("samples", 1, 1 << 20),
    ("seqlen", 2, 1 << 20),
    ("seed", 0, (1 << 63) - 1),
    ("reflections", 1, 4096),
    ("tensor_parallel", 1, 1024),
    ("kv_window", 0, MOST_TOKENS),
    ("kv_sinks", 0, MOST_TOKENS),
)
# What a text must be, and whether it may be left out.
_TEXTS = {
    "dataset": (False, "use wikitext2, c4, demo or a .txt or .jsonl file"),
    "text_field": (True, "name a field of the data set, such as text"),
    "kv_skip_layers": (True, "give numbers separated by commas, such as 0,1,-1"),
}
_CORRECTIONS = ("drift_correction", "residual_correction")  # of a sequential calibration
# Settings that a cache in 16 bits has no use for.
_OF_CODED_CACHE = ("kv_skip_layers", "kv_window", "kv_sinks", "key_scales")
_OPTIONAL_CHOICES = ("act_method",)


def check_settings(settings: Mapping[str, Any]) -> None:
    """Checks each setting by itself.

    Args:
        settings: values by name, of all settings of a recipe.

    Raises:
        NestQuantError: a setting is out of range, of the wrong type, or names what does not exist.
    """
    for name, known in _CHOICES.items():
        value = settings[name]
        if value not in tuple(known) and not (value is None and name in _OPTIONAL_CHOICES):
            raise NestQuantError(f"there is no {name} '{value}'", NOTHING, nearest(str(value), known))
    for name in _FLAGS:
        if type(settings[name]) is not bool:
            raise NestQuantError(f"{name} {settings[name]} is not true or false", NOTHING, f"correct {name}")
    for name, low, high in _RANGES:
        value = settings[name]
        if type(value) is not int or not low <= value <= high:
            raise NestQuantError(f"{name} {value} is not an integer from {low} to {high}", NOTHING, f"correct {name}")
    damping = settings["damping"]
    if not is_number(damping) or not 0 < damping <= 1:
        raise NestQuantError(f"damping {damping} is not in (0, 1]", NOTHING, "use 0.01 or so")
    for name in _CORRECTIONS:
        correction = settings[name]
        if correction is not None and not (is_number(correction) and 0 <= correction <= 1):
            cause = f"{name} {correction} is not a number from 0 to 1"
            raise NestQuantError(cause, NOTHING, f"use 0.5 or so, or leave {name} out")
        if correction is not None and not settings["sequential"]:
            raise NestQuantError(f"a {name} belongs to a sequential calibration", NOTHING, "leave it out")
    for name, (optional, remedy) in _TEXTS.items():
        value = settings[name]
        if not (optional and value is None) and (not isinstance(value, str) or not value):
            raise NestQuantError(f"{name} is not a name", NOTHING, remedy)
    layer_numbers(settings["kv_skip_layers"])


def check_cache(settings: Mapping[str, Any], coded: Sequence[bool]) -> None:
    """Checks what settings of the cache mean together.

    Args:
        settings: values by name, of all settings of a recipe.
        coded: whether keys have a code, and whether values have.

    Raises:
        NestQuantError: only one of both has a code, one that is given by hand has bits besides, or there is none and
            settings are for it.
    """
    if any(coded) and not all(coded):
        raise NestQuantError(
            "keys and values are coded both or not at all", NOTHING, "give key_bits and value_bits, or kv_bits"
        )
    code = settings["kv_code"]
    if isinstance(code, dict) and "q" in code and (settings["key_bits"] or settings["value_bits"]):
        raise NestQuantError(
            "kv_code with q is the code of keys and of values", NOTHING, "leave key_bits and value_bits out"
        )
    unused = [name for name in _OF_CODED_CACHE if settings[name]]
    if unused and not any(coded):
        raise NestQuantError(f"{unused[0]} is for a cache with fewer than 16 bits", NOTHING, "leave it out")


def check_combinations(settings: Mapping[str, Any]) -> None:
    """Raises NestQuantError where mixed rates or tuning cannot work with the method or the rotation."""
    codec = CODECS[settings["method"]]
    if settings["allocation"] == "mixed" and (settings["weight_code"] is not None or not codec.mixed_rates):
        raise NestQuantError(
            "mixed rates choose nested codes for the weights",
            NOTHING,
            "use method nestquant and give no weight_code",
        )
    chosen = settings["act_method"] or settings["act_code"] or settings["act_bits"] > MOST_MIXED
    if settings["act_allocation"] == "mixed" and (chosen or not codec.mixed_rates):
        raise NestQuantError(
            "mixed rates of activations choose nested codes and integers",
            NOTHING,
            f"use method nestquant, act_bits up to {MOST_MIXED:g}, and give no act_method and no act_code",
        )
    if settings["tie_inputs"] and settings["allocation"] != "mixed":
        cause = "tie_inputs is for mixed rates, and all matrices have the same bits"
        raise NestQuantError(cause, NOTHING, "leave tie_inputs out, or give allocation mixed")
    fed = codec.two_sided and settings["feedback"] == "ldlq" and settings["weight_bits"] != 16
    if settings["output_metric"] != "none" and not fed:
        raise NestQuantError(
            "an output_metric is for weights in nested codes, with feedback",
            NOTHING,
            "use method nestquant with feedback ldlq, or leave output_metric out",
        )
    if settings["tensor_parallel"] > 1 and settings["rotation"] == "learned":
        raise NestQuantError(
            "a learned rotation mixes the parts of an input that tensor parallel keeps apart",
            NOTHING,
            "use rotation hadamard, or leave tensor_parallel out",
        )
    if settings["tune"] is not None and not codec.tunable:
        cause = f"the scales of weights of {codec.name} cannot be tuned"
        raise NestQuantError(cause, NOTHING, "leave tune out, or choose another method")
    if settings["tune"] is not None:
        TuneSettings.from_dict(settings["tune"])


def check_paths(settings: Mapping[str, Any]) -> None:
    """Raises NestQuantError where `paths` of all settings of a recipe is no number of paths that the method has."""
    paths = settings["paths"]
    if paths is None:
        return
    if type(paths) is not int or not 1 <= paths <= MOST_PATHS:
        cause = f"paths {paths!r} is not an integer from 1 to {MOST_PATHS}"
        raise NestQuantError(cause, NOTHING, "correct paths, or leave it out")
    codec = CODECS[settings["method"]]
    if paths > 1 and (codec.plain_paths if settings["feedback"] == "none" else codec.paths) == 1:
        cause = f"a search over {paths} paths needs feedback, and nested codes or lattices"
        raise NestQuantError(cause, NOTHING, "leave paths out, or give 1")


def is_number(value: Any) -> bool:
    """Whether a value is a finite number; true and false are none."""
    return type(value) in (int, float) and math.isfinite(value)
