"""Recipes from YAML files and options: the same name means the same in both, and options win."""

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ..base.errors import NestQuantError
from ..base.names import refuse_unknown
from ..codecs.registry import CODECS, weights_only
from .recipe import SIXTEEN, Recipe, names

NOTHING = "nothing was quantized"
BITS = ("weight_bits", "act_bits", "kv_bits")
CACHE_BITS = ("key_bits", "value_bits")  # that win over kv_bits
SETTINGS = ("bits", *names())  # that a file or a command line may have
_OPTIONAL = {field.name for field in dataclasses.fields(Recipe) if field.default is None}


def read_recipe(
    path: Path | None, overrides: Mapping[str, Any], others: Collection[str] = (), weight_bits: float = SIXTEEN
) -> Recipe:
    """A recipe from a YAML file, with settings that win over it.

    Bits follow one rule in both. `bits` sets every part that the method codes; a part with bits of its own has those.
    Where some part is named and `bits` is not, the unnamed ones stay in 16 bits. Where none is, all have the default.
    `key_bits` and `value_bits` win over `kv_bits`, unless that or `bits` comes from where settings win.

    Args:
        path: YAML mapping of Recipe's fields and `bits`; None for the defaults.
        overrides: settings by name; None values are ignored. Bits given here drop the file's {q, k} of that part.
        others: names in the file that are not of the recipe.
        weight_bits: bits of weights where only other parts are named.

    Raises:
        NestQuantError: the file is unreadable, has an unknown setting, a setting is invalid, or there is an act_method
            and nothing says how many bits activations have.
    """
    file = {} if path is None else {name: value for name, value in _read(path).items() if name not in others}
    refuse_unknown(file, SETTINGS, str(path), NOTHING)
    given = {name: value for name, value in overrides.items() if value is not None}
    settings = {name: value for name, value in (file | given).items() if name not in ("bits", *BITS, *CACHE_BITS)}
    if isinstance(settings.get("tune"), bool):  # true and false, as --tune and --no-tune
        settings["tune"] = {} if settings["tune"] else None
    if isinstance(settings.get("kv_skip_layers"), int | list):
        settings["kv_skip_layers"] = str(settings["kv_skip_layers"]).strip("[]")
    bits = _bits(file, given, _weights_only(settings.get("method")), weight_bits)
    if settings.get("act_method") is not None and bits.get("act_bits") == SIXTEEN and "act_bits" not in file | given:
        cause = f"act_method {settings['act_method']} codes nothing: activations stay in 16 bits"
        raise NestQuantError(cause, NOTHING, "give act_bits, such as 8")
    for part in BITS:
        code = part.replace("_bits", "_code")
        value = settings.get(code)
        named = {"bits", part, *(CACHE_BITS if part == "kv_bits" else ())}
        if named & set(given) and isinstance(value, dict) and "q" in value:
            del settings[code]
    return Recipe(**bits, **settings)


def with_tuning(recipe: Recipe, wanted: bool | None) -> Recipe:
    """The recipe with tuning or without; None leaves that to the recipe."""
    if wanted is None or wanted == (recipe.tune is not None):
        return recipe
    return dataclasses.replace(recipe, tune={} if wanted else None)


def _read(path: Path) -> dict[str, Any]:
    from ..storage.settings_file import read_settings

    found = read_settings(path)
    for name, value in found.items():
        if value is None and name in SETTINGS and name not in _OPTIONAL:
            raise NestQuantError(f"{path} has null for '{name}'", NOTHING, "write a value, or leave the line out")
    return found


def _weights_only(method: Any) -> bool:
    """Whether a method leaves activations, keys and values in 16 bits; one that is unknown is refused by `Recipe`."""
    return isinstance(method, str) and method in CODECS and weights_only(method)


def _bits(file: Mapping[str, Any], given: Mapping[str, Any], weights_only: bool, weight_bits: float) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for settings in (file, given):
        if "bits" in settings:
            found = dict.fromkeys(("weight_bits",) if weights_only else BITS, settings["bits"])
        elif "kv_bits" in settings:
            found = {part: bits for part, bits in found.items() if part not in CACHE_BITS}
        found |= {part: settings[part] for part in (*BITS, *CACHE_BITS) if settings.get(part) is not None}
    coded = [part for part in BITS if file.get(part.replace("_bits", "_code")) is not None and part not in found]
    found |= {part: getattr(Recipe, part) for part in coded}  # a code given by hand names its part as well
    if found:
        return {"weight_bits": weight_bits, "act_bits": SIXTEEN, "kv_bits": SIXTEEN} | found
    return {"act_bits": SIXTEEN, "kv_bits": SIXTEEN} if weights_only else {}
