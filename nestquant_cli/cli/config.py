"""`--config FILE.yaml` of every command: settings by the names of the options, which the command line wins over."""

import shlex
from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import console

if TYPE_CHECKING:
    from ..pipeline.recipe import Recipe

NOTHING = "nothing was done"
_NOT_SETTINGS = ("config", "help")  # of the options
_SWITCHES = ("tune",)  # yes or no as an option, settings in a recipe: the command joins the two
_BY_USER = ("COMMANDLINE", "DEFAULT_MAP", "ENVIRONMENT")  # where a value comes from that is not a default


def _take(context: typer.Context, path: Path | None) -> Path | None:
    """Makes the settings of a file the defaults of a command's options, before any of them is read."""
    if path is not None and not context.resilient_parsing:
        _apply(context, path, elsewhere=())
    return path


def _take_beside_recipe(context: typer.Context, path: Path | None) -> Path | None:
    """As `_take`, for commands that read the settings of a recipe from the same file by themselves."""
    if path is not None and not context.resilient_parsing:
        from ..pipeline.recipe_file import SETTINGS

        _apply(context, path, elsewhere=SETTINGS)
    return path


ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE.yaml",
        help="YAML file with settings, named like these options; the command line wins over it.",
        is_eager=True,
        callback=_take,
    ),
]
RecipeOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE.yaml",
        help="YAML file with a recipe and settings, named like these options; the command line wins over it.",
        is_eager=True,
        callback=_take_beside_recipe,
    ),
]


def settings(context: typer.Context) -> dict[str, Any]:
    """All settings of this run, JSON-ready: given, from a file, or defaults."""
    return {name: _plain(value) for name, value in context.params.items() if name not in _NOT_SETTINGS}


def given(context: typer.Context) -> dict[str, Any]:
    """The settings of a recipe that the user gave as options, or a file in their place: whichever a command has."""
    from ..pipeline.recipe_file import SETTINGS

    found = {}
    for name in SETTINGS:
        source = context.get_parameter_source(name)
        if name in context.params and name not in _SWITCHES and source is not None and source.name in _BY_USER:
            found[name] = _plain(context.params[name])
    return {name: value for name, value in found.items() if value is not None}


def taken(context: typer.Context) -> set[str]:
    """Names of the options that a file has set."""
    return set(context.default_map or ())


def print_settings(context: typer.Context) -> None:
    """Says what a run with a file came down to."""
    if context.params.get("config") is not None:
        pairs = (f"{name} {_word(value)}" for name, value in settings(context).items() if value is not None)
        console.note(f"settings: {', '.join(pairs)}")


def print_recipe(recipe: "Recipe") -> None:
    """Says what settings of a quantization came down to; the checkpoint has them, too."""
    pairs = (f"{name} {_word(value)}" for name, value in recipe.to_dict().items() if value is not None)
    console.note(f"recipe: {', '.join(pairs)}")


def _apply(context: typer.Context, path: Path, elsewhere: Iterable[str]) -> None:
    from ..base.names import refuse_unknown
    from ..storage.settings_file import read_settings

    options = {str(each.name): each for each in context.command.params if each.name not in _NOT_SETTINGS}
    found = {name: value for name, value in read_settings(path, words=True).items() if name not in elsewhere}
    refuse_unknown(found, [*options, *elsewhere], str(path), NOTHING)
    context.default_map = {
        name: _value(path, name, value, many=getattr(options[name], "multiple", False))
        for name, value in found.items()
        if value is not None
    }


def _value(path: Path, name: str, value: Any, many: bool) -> Any:
    """As the command line would have it: words. A list is one for a repeatable option, else its items by comma."""
    from ..base.errors import NestQuantError

    items = value if isinstance(value, list) else [value]
    if not all(isinstance(each, str) for each in items):
        raise NestQuantError(f"{path} has a {name} that is no number, text or list", NOTHING, "see --help for its form")
    return items if many else ",".join(items)


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, Enum):
        return value.value
    return str(value) if isinstance(value, Path) else value


def _word(value: Any) -> str:
    return shlex.quote(",".join(map(str, value)) if isinstance(value, list) else str(value))
