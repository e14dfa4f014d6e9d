"""Every option of every command arrives where it acts, from the command line and from a file, and nonsense is refused.

The options are those that the program has. What is expected of each stands in option_table.py.
"""

import functools
import importlib
import inspect
import shutil
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import typer
import yaml

from nestquant_cli.cli import console, main
from nestquant_cli.pipeline import recipe
from nestquant_cli.storage.files import write_text
from tests.cli.option_case import Case, Command, FreeText
from tests.cli.option_table import COMMANDS, GLOBAL
from tests.families import error_line, in_process

PROGRAM: Any = typer.main.get_command(main.app)
OF_TYPER = {"help", "install_completion", "show_completion"}
PARAMETERS = {
    command: {each.name: each for each in parsed.params if each.name not in OF_TYPER | {"config"}}
    for command, parsed in PROGRAM.commands.items()
}
EVERY = [(command, name) for command, parameters in PARAMETERS.items() for name in parameters]
FREE_TEXTS = [
    (command, name)
    for command, about in COMMANDS.items()
    for name, case in about.cases.items()
    if isinstance(case.nonsense, FreeText)
]
REFUSING = [each for each in EVERY if each not in FREE_TEXTS]


class Arrived(Exception):  # noqa: N818  it is no error
    """Ends a command where the option under test has come to its place."""


@pytest.fixture(scope="module")
def places(
    tiny_model_folder: Path,
    tiny_checkpoint: Path,
    talking: Path,
    tiny_text_file: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, str]:
    """What the names in braces stand for."""
    base = tmp_path_factory.mktemp("options")
    (base / "full").mkdir()
    (base / "full" / "notes.txt").write_text("mine", encoding="utf-8")
    for name in ("recipe", "recipe2"):
        (base / f"{name}.yaml").write_text(f"dataset: {tiny_text_file}\n", encoding="utf-8")
    found = {
        "model": tiny_model_folder,
        "other": shutil.copytree(tiny_model_folder, base / "other"),
        "packed": tiny_checkpoint,
        "talking": talking,
        "text": tiny_text_file,
        "recipe": base / "recipe.yaml",
        "recipe2": base / "recipe2.yaml",
        "full": base / "full",
    }
    return {name: str(place) for name, place in found.items()}


@pytest.fixture
def here(places: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """The places, with one that is new, and a log that is left alone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(console, "configure", lambda debug, quiet, form: None)
    yield places | {"new": str(tmp_path / "new")}
    assert Path(places["full"], "notes.txt").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("command", PARAMETERS)
def test_every_option_has_a_line_in_the_table(command: str) -> None:
    assert command in COMMANDS, f"{command} is a new command: write into tests/cli/option_table.py what it calls"
    missing = set(PARAMETERS[command]) - set(COMMANDS[command].cases)
    assert not missing, f"write into tests/cli/option_table.py where these options of {command} act: {sorted(missing)}"
    gone = set(COMMANDS[command].cases) - set(PARAMETERS[command])
    assert not gone, f"{command} has no options {sorted(gone)} any more: take them out of tests/cli/option_table.py"


def test_every_global_option_has_a_line_in_the_table() -> None:
    assert {each.name for each in PROGRAM.params} - OF_TYPER == set(GLOBAL)


def case_of(command: str, name: str) -> tuple[Command, Case]:
    if name not in COMMANDS[command].cases:
        pytest.fail(f"tests/cli/option_table.py does not say where {name} of {command} acts")
    return COMMANDS[command], COMMANDS[command].cases[name]


def filled(value: Any, places: dict[str, str]) -> Any:
    if isinstance(value, list):
        return [filled(each, places) for each in value]
    return value.format(**places) if isinstance(value, str) else value


def words(parameters: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    """The settings as a user would type them: arguments in their order, then options."""
    arguments: list[str] = []
    options: list[str] = []
    for name, parameter in parameters.items():
        if name not in settings:
            continue
        value = settings[name]
        if parameter.param_type_name == "argument":
            arguments.append(str(value))
        elif isinstance(value, bool):
            options.append(parameter.opts[0] if value else parameter.secondary_opts[0])
        else:
            for each in value if isinstance(value, list) else [value]:
                options += [parameter.opts[0], str(each)]
    return [*arguments, *options]


def from_file(settings: dict[str, Any], folder: Path) -> list[str]:
    path = folder / "settings.yaml"
    write_text(path, yaml.safe_dump({name.replace("_", "-"): value for name, value in settings.items()}))
    return ["--config", str(path)]


def watch(monkeypatch: pytest.MonkeyPatch, place: str, case: Case) -> list[Any]:
    """Replaces a function by one that keeps what it was given at `case.at`, and ends the command."""
    module, _, path = place.partition(":")
    *owners, name = path.split(".")
    owner: Any = functools.reduce(getattr, owners, importlib.import_module(f"nestquant_cli.{module}"))
    original = getattr(owner, name)
    found: list[Any] = []

    def arrived(*arguments: Any, **named: Any) -> Any:
        bound = inspect.signature(original).bind(*arguments, **named)
        bound.apply_defaults()
        if not case.when(bound.arguments):
            return original(*arguments, **named)
        found.append(case.at(bound.arguments) if callable(case.at) else look_up(bound.arguments, case.at))
        raise Arrived

    monkeypatch.setattr(owner, name, arrived)
    return found


def look_up(arguments: Any, path: str) -> Any:
    value = arguments
    for step in path.split("."):
        if isinstance(value, (dict, list, tuple)):
            value = value[step] if isinstance(value, dict) else value[int(step)]
        else:
            value = getattr(value, step)
    return value


def plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, Enum):
        return value.value
    return str(value) if isinstance(value, Path) else value


def is_default(parameter: Any, value: Any) -> bool:
    return parameter.param_type_name == "option" and plain(parameter.default) == value


@pytest.mark.parametrize("source", ["words", "file"])
@pytest.mark.parametrize(("command", "name"), EVERY)
def test_it_arrives_where_it_acts(
    command: str,
    name: str,
    source: str,
    here: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    case = case_of(command, name)[1]
    assert case.only or not is_default(PARAMETERS[command][name], case.value), "the table has the option's default"
    arrived = arriving(command, name, filled(case.value, here), source, here, tmp_path, monkeypatch)
    expected = filled(case.value if case.expected is None else case.expected, here)
    assert expected(arrived) if callable(expected) else plain(arrived) == expected


@pytest.mark.parametrize("source", ["words", "file"])
@pytest.mark.parametrize(("command", "name"), FREE_TEXTS)
def test_any_text_arrives_unchanged(
    command: str,
    name: str,
    source: str,
    here: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    free: FreeText = case_of(command, name)[1].nonsense
    assert arriving(command, name, free.odd, source, here, tmp_path, monkeypatch) == free.odd, free.reason


def arriving(
    command: str,
    name: str,
    value: Any,
    source: str,
    places: dict[str, str],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Any:
    """What comes to the place where an option acts when it is given as `value`, by words or in a file of settings."""
    about, case = case_of(command, name)
    settings = filled_all(about.base | dict(case.together), places) | {name: value}
    shorten(monkeypatch, about, case)
    arrivals = watch(monkeypatch, case.acts or about.acts, case)
    given = words(PARAMETERS[command], settings) if source == "words" else from_file(settings, folder)
    with pytest.raises(Arrived):
        main.app([command, *given], standalone_mode=False)
    return arrivals[0]


def shorten(monkeypatch: pytest.MonkeyPatch, about: Command, case: Case) -> None:
    """For an option that acts after the command's function: in place of that function, its result."""
    if about.result is not None and case.acts is not None:
        module, _, function = about.acts.partition(":")
        monkeypatch.setattr(f"nestquant_cli.{module}.{function}", lambda *arguments: about.result)


def filled_all(settings: dict[str, Any], places: dict[str, str]) -> dict[str, Any]:
    return {name: filled(value, places) for name, value in settings.items()}


@pytest.mark.parametrize(
    ("command", "name", "source"),
    [(*each, "words") for each in REFUSING] + [(*each, "file") for each in REFUSING if each[1] in recipe.names()],
)
def test_nonsense_is_refused_in_one_line(
    command: str,
    name: str,
    source: str,
    here: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    about, case = case_of(command, name)
    nonsense = "perhaps" if isinstance(case.value, bool) else case.nonsense
    assert nonsense is not None, "the table has no nonsense for this option"
    settings = filled_all(about.base | dict(case.together) | {name: nonsense}, here)
    shorten(monkeypatch, about, case)
    given = words(PARAMETERS[command], settings) if source == "words" else from_file(settings, tmp_path)
    code, _, error = in_process(capfd, monkeypatch)(command, *given)
    assert code == 2 and "internal error" not in error_line(error), error


NUMBERS = [
    (str(each.name), name)
    for each in main.app.registered_commands
    for name, hint in get_type_hints(each.callback).items()
    if hint is float or float in get_args(hint)
]


@pytest.mark.parametrize(("command", "name"), NUMBERS)
@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "1e999", "many"])
def test_numbers_are_finite(
    command: str, name: str, number: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, error = in_process(capfd, monkeypatch)(command, PARAMETERS[command][name].opts[0], number)
    assert code == 2 and f"'{number}' is not a finite number" in error_line(error)


@pytest.mark.parametrize("name", GLOBAL)
def test_a_global_option_arrives(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = GLOBAL[name]
    found = watch(monkeypatch, case.acts or "cli.console:configure", case)
    parameters = {each.name: each for each in PROGRAM.params}
    with pytest.raises(Arrived):
        main.app([*words(parameters, {name: case.value}), "inspect", "absent"], standalone_mode=False)
    expected = case.value if case.expected is None else case.expected
    assert expected(found[0]) if callable(expected) else plain(found[0]) == expected
    if not isinstance(case.value, bool):
        with pytest.raises(SystemExit) as leaving:
            main.main([*words(parameters, {name: case.nonsense}), "inspect", "absent"])
        assert leaving.value.code == 2
