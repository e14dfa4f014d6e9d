"""A command whose parameters are groups has the options of the groups, in their place and with their defaults."""

from dataclasses import dataclass, fields
from typing import Annotated, Any

import pytest
import typer

from nestquant_cli.cli import main
from nestquant_cli.cli.option_groups import CalibrationRun, CalibrationText, EvaluationRun, GenerationRun, expand_groups

SizeOption = Annotated[int, typer.Option("--size", min=1)]
NameOption = Annotated[str | None, typer.Option("--name")]
FirstOption = Annotated[bool, typer.Option("--first")]
LastOption = Annotated[str, typer.Option("--last")]
COMMANDS = {
    CalibrationText: ("calibrate", "quantize"),
    CalibrationRun: ("calibrate", "quantize"),
    EvaluationRun: ("eval-ppl", "eval-tasks", "compare"),
    GenerationRun: ("generate", "chat"),
}


@dataclass(frozen=True)
class Group:
    size: SizeOption = 3
    name: NameOption = None


@pytest.fixture
def calls() -> list[Any]:
    return []


@pytest.fixture
def app(calls: list[Any]) -> typer.Typer:
    app = typer.Typer()

    def command(context: typer.Context, first: FirstOption = False, *, group: Group, last: LastOption = "z") -> None:
        """Does something."""
        calls.append((first, group, last, context.params))

    app.command()(expand_groups(command))
    return app


def test_a_group_gives_its_options_in_its_place(app: typer.Typer) -> None:
    parsed: Any = typer.main.get_command(app)
    assert [option.name for option in parsed.params][:4] == ["first", "size", "name", "last"]
    assert parsed.help == "Does something."
    assert [option.default for option in parsed.params][:4] == [False, 3, None, "z"]


def test_the_command_gets_the_group(app: typer.Typer, calls: list[Any]) -> None:
    app(["--size", "5", "--last", "y"], standalone_mode=False)
    assert calls == [(False, Group(5, None), "y", {"first": False, "size": 5, "name": None, "last": "y"})]
    app([], standalone_mode=False)
    assert calls[1][1] == Group()


@pytest.mark.parametrize("group", COMMANDS)
def test_commands_have_the_options_of_their_groups_one_after_another(group: Any) -> None:
    program: Any = typer.main.get_command(main.app)
    for command in COMMANDS[group]:
        names = [option.name for option in program.commands[command].params]
        first = names.index(fields(group)[0].name)
        assert names[first : first + len(fields(group))] == [field.name for field in fields(group)], command
