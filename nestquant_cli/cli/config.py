"""`--config FILE.yaml` of every command: settings named like the options, which the command line overrides."""

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
_NOT_SETTINGS = ("config", "help")  # options that no file may have
_SWITCHES = ("tune",)  # yes or no as an option, a mapping in a recipe; the command combines the two
_BY_USER = ("COMMANDLINE", "DEFAULT_MAP", "ENVIRONMENT")  # sources of a value that is not a default


def _take(context: typer.Context, path: Path | None) -> Path | None:
    """Makes the settings of a file the defaults of a command's options, before any of them is read."""
    if path is not None and not context.resilient_parsing:
        _apply(context, path, elsewhere=())
    return path


def _take_all_but_recipe(context: typer.Context, path: Path | None) -> Path | None:
    """Makes the settings of a file that are not a recipe's the defaults of a command's options.

    The command reads the recipe from the same file itself.
    """
    if path is not None and not context.resilient_parsing:
        from ..pipeline.recipe_file import SETTINGS

        _apply(context, path, elsewhere=SETTINGS)
    return path


ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE.yaml",
        help="YAML file with settings named like these options. Options on the command line override it.",
        is_eager=True,
        callback=_take,
    ),
]
RecipeOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE.yaml",
        help="YAML file with a recipe and other settings, named like these options. Options on the command line "
        "override it.",
        is_eager=True,
        callback=_take_all_but_recipe,
    ),
]


def settings(context: typer.Context) -> dict[str, Any]:
    """All settings of this run by name, JSON-ready: from the command line, from a file, or defaults."""
    return {name: _plain(value) for name, value in context.params.items() if name not in _NOT_SETTINGS}


def recipe_settings(context: typer.Context) -> dict[str, Any]:
    """The settings of a recipe that were given on the command line or by --config, by name and JSON-ready.

    Defaults are left out, so that they do not override a recipe file.
    """
    from ..pipeline.recipe_file import SETTINGS

    values = {}
    for name in SETTINGS:
        source = context.get_parameter_source(name)
        if name in context.params and name not in _SWITCHES and source is not None and source.name in _BY_USER:
            values[name] = _plain(context.params[name])
    return {name: value for name, value in values.items() if value is not None}


def options_from_file(context: typer.Context) -> set[str]:
    """Names of the options that the file of --config has set."""
    return set(context.default_map or ())


def print_settings(context: typer.Context) -> None:
    """Prints all settings of a run that has a --config file."""
    if context.params.get("config") is not None:
        pairs = (f"{name} {_word(value)}" for name, value in settings(context).items() if value is not None)
        console.note(f"settings: {', '.join(pairs)}")


def print_recipe(recipe: "Recipe") -> None:
    """Prints every setting of a recipe, defaults included; the checkpoint records them as well."""
    pairs = (f"{name} {_word(value)}" for name, value in recipe.to_dict().items() if value is not None)
    console.note(f"recipe: {', '.join(pairs)}")


def _apply(context: typer.Context, path: Path, elsewhere: Iterable[str]) -> None:
    from ..base.names import refuse_unknown
    from ..storage.settings_file import read_settings

    options = {str(option.name): option for option in context.command.params if option.name not in _NOT_SETTINGS}
    values = {name: value for name, value in read_settings(path, words=True).items() if name not in elsewhere}
    refuse_unknown(values, [*options, *elsewhere], str(path), NOTHING)
    context.default_map = {
        name: _value(path, name, value, many=getattr(options[name], "multiple", False))
        for name, value in values.items()
        if value is not None
    }


def _value(path: Path, name: str, value: Any, many: bool) -> Any:
    """A value of the file in the form of the command line: a string.

    A list stays a list of strings for a repeatable option, and is joined by commas for any other.
    """
    from ..base.errors import NestQuantError

    items = value if isinstance(value, list) else [value]
    if not all(isinstance(item, str) for item in items):
        raise NestQuantError(
            f"{path} has a {name} that is not a number, text or list", NOTHING, "see --help for its form"
        )
    return items if many else ",".join(items)


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    return str(value) if isinstance(value, Path) else value


def _word(value: Any) -> str:
    return shlex.quote(",".join(map(str, value)) if isinstance(value, list) else str(value))
