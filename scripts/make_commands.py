"""Writes docs/commands.md, the command reference, from the command line itself.

python scripts/make_commands.py
"""

from enum import Enum
from pathlib import Path
from typing import Any

import typer

from nestquant_cli.cli.main import app
from nestquant_cli.storage.files import write_text

TARGET = Path(__file__).resolve().parents[1] / "docs" / "commands.md"
HEAD = """# Commands

Written by `python scripts/make_commands.py` from the command line itself; `nestquant COMMAND --help` says the same.
"""


def reference() -> str:
    """The whole page."""
    program: Any = typer.main.get_command(app)
    parts = [HEAD, "## nestquant", "", _table(program)]
    for name, command in program.commands.items():
        words = " ".join(_argument(each) for each in command.params if each.param_type_name == "argument")
        about = "\n\n".join(" ".join(part.split()) for part in str(command.help).split("\n\n"))
        parts += [f"## nestquant {name}", "", f"    nestquant {name} {words} [OPTIONS]", "", about, "", _table(command)]
    return "\n".join(parts).rstrip() + "\n"


def _table(command: Any) -> str:
    rows = []
    for each in command.params:
        if each.param_type_name == "argument":
            rows.append((_argument(each), each.help))
        elif each.name != "help":
            names = "/".join([*each.opts, *each.secondary_opts])
            rows.append((f"{names}{_value(each)}", f"{each.help}{_default(each)}"))
    return "\n".join(["| | |", "|---|---|", *(f"| `{_cell(left)}` | {_cell(right)} |" for left, right in rows)]) + "\n"


def _argument(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def _value(option: Any) -> str:
    if option.is_flag:
        return ""
    if isinstance(option.default, Enum):
        return " " + "|".join(str(each.value) for each in type(option.default))
    return " " + (option.metavar or "VALUE")


def _default(option: Any) -> str:
    shown = option.show_default if isinstance(option.show_default, str) else option.default
    shown = shown.value if isinstance(shown, Enum) else shown
    return "" if option.is_flag or not isinstance(shown, (str, int, float)) else f" Default: {shown}."


def _cell(text: str | None) -> str:
    return " ".join(str(text or "").split()).replace("|", "\\|")


if __name__ == "__main__":
    write_text(TARGET, reference())
