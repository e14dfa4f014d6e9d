"""The recipes of a comparison, and which of them can share a calibration."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..base.errors import NestQuantError
from ..pipeline.recipe import Recipe
from ..pipeline.recipe_file import read_recipe

NOT_COMPARED = "nothing was compared"
_MORE = {
    "act": ("act_method",),
    "kv": ("key_bits", "value_bits", "key_scales"),
}  # settings of a part besides bits and code
REFERENCE = "reference"  # the row of the model that was quantized


@dataclass(frozen=True)
class Entry:
    """One recipe, named after its file."""

    name: str
    recipe: Recipe


def read_entries(paths: Sequence[Path], overrides: dict[str, Any]) -> list[Entry]:
    """The recipes in the order given.

    Args:
        paths: YAML files with different names.
        overrides: settings that win over all of them.

    Raises:
        NestQuantError: none, two of one name, one that is not a recipe.
    """
    if not paths:
        raise NestQuantError("--recipes names no file", NOT_COMPARED, "give YAML files, such as configs/w4.yaml")
    entries: dict[str, Entry] = {}
    for path in paths:
        if path.stem in entries or path.stem == REFERENCE:
            raise NestQuantError(f"two rows would be named '{path.stem}'", NOT_COMPARED, "rename one of the files")
        entries[path.stem] = Entry(path.stem, read_recipe(path, overrides))
    return list(entries.values())


def calibrations(entries: Sequence[Entry]) -> list[tuple[Recipe, list[Entry]]]:
    """The entries in groups that one calibration serves, each with the recipe to calibrate for.

    Text, seed, rotation and its parts must be the same, activations and the KV cache coded alike or left in 16 bits.
    """
    groups: list[tuple[Recipe, list[Entry]]] = []
    for entry in entries:
        for number, (recipe, members) in enumerate(groups):
            joint = _joint(recipe, entry.recipe)
            if joint is not None:
                groups[number] = joint, [*members, entry]
                break
        else:
            groups.append((entry.recipe, [entry]))
    return groups


def _joint(one: Recipe, other: Recipe) -> Recipe | None:
    """A recipe whose calibration has what both need; None where there is none."""
    for name in ("dataset", "text_field", "bos", "samples", "seqlen", "seed", "rotation", "tensor_parallel"):
        if getattr(one, name) != getattr(other, name):
            return None
    if one.scales_channels != other.scales_channels:
        return None
    if any(each.sequential or each.act_allocation == "mixed" for each in (one, other)) or one.rotation == "learned":
        return None  # made for the recipe's own codes
    coded = [recipe for recipe in (one, other) if recipe.shape("act") or recipe.shape("kv")]
    if len(coded) < 2:
        return coded[0] if coded else one
    if one.centering != other.centering:
        return None
    taken: dict[str, Any] = {}
    for part in ("act", "kv"):
        shapes = _shapes(one, part), _shapes(other, part)
        if one.method != other.method or (None not in shapes and shapes[0] != shapes[1]):
            return None
        giver = one if shapes[0] is not None else other
        names = f"{part}_bits", f"{part}_code", *_MORE[part]
        taken |= {name: getattr(giver, name) for name in names}
    return dataclasses.replace(one, **taken)


def _shapes(recipe: Recipe, part: str) -> Any:
    """What the codes of a part have in common; None where it stays in 16 bits."""
    if recipe.shape(part) is None:
        return None
    if part == "kv":
        return recipe.shape(part), recipe.shape("value"), recipe.key_scales
    return recipe.shape(part)
