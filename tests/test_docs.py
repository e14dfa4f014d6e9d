"""The documentation agrees with the program: its commands run, its options exist, its links lead somewhere."""

import importlib.util
import io
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

import nestquant_cli
from nestquant_cli.cli.main import app
from tests.doc_commands import PAGES, ROOT, commands, smaller
from tests.families import in_process

API = ROOT / "docs" / "api.md"
OF_OTHERS = {"--no-deps", "--nproc-per-node", "--tensor-parallel-size", "--enable-expert-parallel"}  # of other programs


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
    assert all(f"docs/{page.name})" in readme for page in (ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_a_heading_name_one(page: Path) -> None:
    for link, anchor in re.findall(r"\]\(([^)#:]*)#([^)]*)\)", page.read_text(encoding="utf-8")):
        target = (page.parent / link if link else page).read_text(encoding="utf-8")
        headings = re.findall(r"^#+ (.*)$", target, re.M)
        assert anchor in {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}, (link, anchor)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_folders_in_the_text_exist(page: Path) -> None:
    """A path with a folder in it: from the page's folder, the repository's root or the package's."""
    text = page.read_text(encoding="utf-8")
    paths = re.findall(r"(?<![\w/.$~-])((?:[a-z0-9_-]+/)+[\w.-]+\.(?:py|ya?ml|md))\b", re.sub(r"\]\([^)]*\)", "", text))
    folders = re.findall(r"`((?:[a-z0-9_]+/)+)`", text)
    for path in [*paths, *folders]:
        assert any((root / path).exists() for root in (page.parent, ROOT, ROOT / "nestquant_cli")), path


def test_every_table_of_perplexities_names_the_reference() -> None:
    """Gaps are measured from a file that was quantized before; a table that does not say so claims too much."""
    for page in PAGES:
        for table in re.findall(r"(?:^\|.*\n)+", page.read_text(encoding="utf-8"), re.M):
            for row in re.findall(r"^\| *(?:unquantized|original|reference)[^|]*\|", table, re.M):
                assert "Q4_1 file, de-quantized" in row, (page.name, row)


def parse(words: Sequence[str]) -> None:
    """By the program's own parser, which raises for what it does not know; nothing is run."""
    program: Any = typer.main.get_command(app)
    if words[0].startswith("-"):
        assert any(words[0] in each.opts for each in program.params), words
    else:
        program.commands[words[0]].make_context(words[0], list(words[1:]))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_program_takes_the_commands_of_a_page(page: Path) -> None:
    for command in commands(page):
        parse(command.words)


def test_an_option_or_a_command_that_has_gone_is_noticed() -> None:
    with pytest.raises(Exception, match="No such option"):
        parse(["eval-ppl", "MODEL", "--gone", "3"])
    with pytest.raises(KeyError):
        parse(["gone", "MODEL"])
    assert len({command.words for page in PAGES for command in commands(page)}) > 30, "few commands are found"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_in_the_text_exist(page: Path) -> None:
    program: Any = typer.main.get_command(app)
    params = [each for command in [program, *program.commands.values()] for each in command.params]
    known = {option for each in params for option in (*each.opts, *each.secondary_opts)} | {"--help"} | OF_OTHERS
    for passage in re.findall(r"`((?:-|nestquant )[^`]*)`", page.read_text(encoding="utf-8")):
        for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", passage):
            assert option in known, option


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_scripts_of_a_page_take_their_options(page: Path) -> None:
    text = re.sub(r" *\\\n\s*", " ", page.read_text(encoding="utf-8"))
    for script, rest in re.findall(r"^    (?:\w+=\S+ )*python (scripts/\w+\.py)(.*)$", text, re.M):
        source = (ROOT / script).read_text(encoding="utf-8")
        for option in re.findall(r"(?<!\S)--[\w-]+", rest.split("#")[0]):
            assert f'"{option}"' in source, (script, option)


def test_the_page_of_the_api_has_every_public_name_with_an_example() -> None:
    page = API.read_text(encoding="utf-8")
    listed = re.findall(r"^\| \[?`(\w+)`[^|]* \|", page, re.M)
    assert sorted(listed) == sorted(nestquant_cli.__all__)
    for name in sorted({*listed} - {"__version__"}):
        section = re.search(rf"^## {name}\n(.*?)(?=^## )", page, re.M | re.S)
        assert section is not None and f"nestquant_cli.{name}" in "".join(blocks(section[1])), name
        assert "Example:" in (getattr(nestquant_cli, name).__doc__ or ""), name


def blocks(text: str) -> list[str]:
    """The Python blocks of a page or of a part of it."""
    return re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)


def small(code: str, places: dict[str, str]) -> str:
    """An example on a tiny model and little text, without the network."""
    for found, instead in (
        (r'dataset="demo"', f"dataset={places['TEXT']!r}"),
        (r'"demo"', repr(places["MODEL"])),
        (r"samples=\d+, seqlen=\d+", "samples=2, seqlen=64"),
        (r"steps=\d+", "steps=2, checks=1, held_out=1, seqlen=32"),
        (r"max_windows=\d+", "max_windows=1, seqlen=64"),
        (r"max_new_tokens=\d+", "max_new_tokens=4"),
    ):
        code = re.sub(found, lambda _, text=instead: text, code)  # type: ignore[misc]
    return code


def test_the_examples_of_the_api_run(places: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    """In the order of the page, since each goes on from those before; what they print shows that they did something."""
    names: dict[str, Any] = {}
    examples = blocks(API.read_text(encoding="utf-8"))
    assert len(examples) >= len(nestquant_cli.__all__) - 1
    for number, code in enumerate(examples):
        exec(compile(small(code, places), f"example {number} of api.md", "exec"), names)
    printed = capsys.readouterr().out
    for part in ("{'weight': 4.0, 'act': 16.0, 'kv': 16.0}", "\npacked\nint8\n", " []\n", "w3.5 ", "bits"):
        assert part in printed, part
    folders = ["demo-w4", "demo-w3a4kv4", "demo-w4a4kv4", "demo-w4-tuned", "demo-mixed", "original-w4"]
    assert all((Path(folder) / "config.json").is_file() for folder in folders)


def test_the_comparison_has_the_figures_of_the_page_that_measured_them() -> None:
    page = (ROOT / "docs" / "quality.md").read_text(encoding="utf-8")
    measured = page.partition("## Measured")[2].partition("\n    nestquant compare")[0]  # the first table alone
    compared = (ROOT / "docs" / "comparison.md").read_text(encoding="utf-8")
    of_quality = re.findall(r"^\| `([\w-]+\.yaml)` \| ([\d.]+) \| ([\d.]+) ±[^|]*\| ([\d.]+) ±", measured, re.M)
    of_page = re.findall(r"^\| [^|]+ \| `([\w-]+\.yaml)` \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|", compared, re.M)
    command = re.search(r"nestquant compare MODEL --recipes (\S+)", page)
    assert command is not None
    assert sorted(of_page) == sorted(of_quality)
    assert sorted(name for name, *_ in of_page) == sorted(command[1].split(","))


@pytest.fixture
def places(
    talking: Path, talking_packed: Path, tiny_text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, str]:
    """What stands for the names in the text, in a folder that is the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tuning.yaml").write_text("tune: {steps: 2, checks: 1, held_out: 1, seqlen: 32}\n", encoding="utf-8")
    copy = shutil.copytree(talking_packed, tmp_path / "packed")  # `push` writes a card into it
    (tmp_path / "out").mkdir()
    own = {"MODEL": talking, "CKPT": copy, "TEXT": tiny_text_file, "OUT": "out", "TUNING": "tuning.yaml"}
    return {name: str(place) for name, place in own.items()}


@pytest.mark.parametrize("page", [page for page in PAGES if any(each.offline for each in commands(page))], ids=str)
def test_the_commands_of_a_page_run(
    page: Path,
    places: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    run, done = in_process(capfd, monkeypatch), set()
    for number, command in enumerate(each for each in commands(page) if each.offline):
        words = smaller(command, places)
        if tuple(words) not in done:
            done.add(tuple(words))
            monkeypatch.setattr("sys.stdin", io.StringIO("What is even?\n"))
            code, _, error = run(*(f"new-{number}" if word == "NEW" else word for word in words))
            assert code == 0, (command.text, error)
