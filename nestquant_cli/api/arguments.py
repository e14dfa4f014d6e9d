"""What the functions of the API are given, as the functions below them take it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..base.errors import NestQuantError
from ..base.names import refuse_unknown
from ..base.units import parse_bytes
from ..models.source import Source, resolve
from ..pipeline.recipe import Recipe
from ..pipeline.recipe_file import SETTINGS, read_recipe

_NOTHING = "nothing was quantized"


def recipe_of(
    recipe: str | Path | Recipe | None, settings: Mapping[str, Any], weight_bits: float
) -> tuple[Recipe, list[str]]:
    """The recipe of a call, and the names of the settings that the call gave.

    Args:
        recipe: a YAML file, over which the settings win; a Recipe, which has them all; None for the defaults.
        settings: settings by name; None is one that the call did not give.
        weight_bits: bits of the weights where only other parts are named.

    Raises:
        NestQuantError: an unknown or unusable setting, or settings besides a Recipe.
    """
    named = [name for name, value in settings.items() if value is not None]
    refuse_unknown(settings, SETTINGS, "the call", _NOTHING)
    if not isinstance(recipe, Recipe):
        return read_recipe(None if recipe is None else Path(recipe), settings, weight_bits=weight_bits), named
    if named:
        cause = f"{named[0]} was given besides a Recipe"
        raise NestQuantError(cause, _NOTHING, f"write Recipe({named[0]}=…), or give the settings alone")
    return recipe, named


def source_of(model: Any, revision: str | None = None) -> Source:
    """The model that a name means.

    Raises:
        NestQuantError: not a name, or what `models.resolve.resolve` raises.
    """
    if not isinstance(model, str | Path | Source):
        raise NestQuantError(
            f"a {type(model).__name__} was given as the model", "nothing was done", "give a folder, a file or a Hub id"
        )
    return resolve(str(model) if isinstance(model, Path) else model, revision)


def bytes_of(size: int | str) -> int:
    """A memory budget in bytes, from a number or from text such as "2GiB".

    Raises:
        NestQuantError: not a size.
    """
    return parse_bytes(str(size), "memory_budget")
