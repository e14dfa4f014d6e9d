"""The documentation agrees with the program: the command reference word for word, and every option is in it."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from nestquant_cli.cli.main import app

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_commands", ROOT / "scripts" / "make_commands.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_command_reference_is_up_to_date(script: ModuleType) -> None:
    assert script.TARGET.read_text(encoding="utf-8") == script.reference(), "run python scripts/make_commands.py"


def test_every_command_is_in_the_reference_and_the_readme(script: ModuleType) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for command in app.registered_commands:
        assert f"## nestquant {command.name}\n" in script.reference()
        assert f"nestquant {command.name}" in readme


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_in_the_text_exist(script: ModuleType, page: Path) -> None:
    sections = dict(re.findall(r"^## nestquant ([\w-]+)\n(.*?)(?=^## |\Z)", script.reference(), re.M | re.S))
    everywhere = {"--help", "--debug", "--quiet", "--log-format"}
    for line in re.findall(r"^    nestquant ([a-z][\w-]* .*)$", page.read_text(encoding="utf-8"), re.M):
        command, rest = line.split(" ", 1)
        assert command in sections, line
        for option in re.findall(r"(?<!\S)--[\w-]+", rest.split("#")[0].split(";")[0]):
            assert option in everywhere or re.search(rf"{option}[ `/]", sections[command]), (command, option)
