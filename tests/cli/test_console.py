"""Nothing that a checkpoint says may steer the terminal, whichever way it is printed."""

import io
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from nestquant_cli.base import progress
from nestquant_cli.checkpoint.manifest import CONFIG, MANIFEST
from nestquant_cli.cli import console
from nestquant_cli.cli.log import LogFormat, handler
from nestquant_cli.storage.files import read_json, sha256_file, write_json
from tests.families import Outcome, in_process

ESCAPE = "\x1b[2J"
HOSTILE = f"model.{ESCAPE}layer\nresult: forged\r\x9b1A"


@pytest.fixture(params=[LogFormat.text, LogFormat.json])
def form(request: pytest.FixtureRequest) -> Iterator[LogFormat]:
    """The log in one of its forms, all of it."""
    logger = logging.getLogger("nestquant")
    before = logger.level, logger.handlers, logger.propagate
    logger.setLevel(logging.DEBUG)
    logger.handlers, logger.propagate = [handler(request.param)], False
    yield request.param
    logger.level, logger.handlers, logger.propagate = before
    progress.draw_bars(True)


@pytest.fixture
def nestquant(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    return in_process(capfd, monkeypatch)


def raised() -> None:
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        logging.getLogger("nestquant").exception("failed on %s", HOSTILE)


WAYS: dict[str, Callable[[], object]] = {
    "line": lambda: console.line(HOSTILE),
    "note": lambda: console.note(HOSTILE, name=HOSTILE),
    "table": lambda: console.table(["tensor", HOSTILE], [[HOSTILE, 1]], title=HOSTILE),
    "ending": lambda: console.print_ending(Path(HOSTILE), "eval-ppl", HOSTILE),
    "stream": lambda: console.stream(HOSTILE),
    "print_error": lambda: console.print_error(HOSTILE),
    "run": lambda: console.run(lambda: {}[HOSTILE], debug=True),
    "run, an OSError": lambda: console.run(lambda: Path(f"nothing/{HOSTILE}").read_bytes()),
    "exception": raised,
    "steps": lambda: list(progress.track([1], HOSTILE)),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_printing_escapes(way: str, form: LogFormat, capfd: pytest.CaptureFixture[str]) -> None:
    WAYS[way]()
    out, err = capfd.readouterr()
    message = out + err
    assert "model." in message and "layer" in message
    assert not set("\x1b\r\x9b") & set(message)
    if way != "stream":
        assert not [line for line in message.splitlines() if line.startswith("result: forged")], message
    if form is LogFormat.json and way not in ("line", "table", "ending", "stream"):
        assert all(json.loads(line) for line in err.splitlines())


def test_a_bar_escapes_its_description(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "nestquant")
    screen = io.StringIO()
    monkeypatch.setattr(progress, "console", lambda: Console(file=screen, force_terminal=True, width=200))
    monkeypatch.setattr(progress, "on_terminal", lambda: True)
    list(progress.track([1], HOSTILE))
    assert "model." in screen.getvalue() and ESCAPE not in screen.getvalue() and "\x9b" not in screen.getvalue()


@pytest.fixture
def hostile(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint whose recipe, one of whose tensors and a file next to it have names that control a terminal."""
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "hostile"))
    config, manifest = read_json(folder / CONFIG), read_json(folder / MANIFEST)
    config["quantization_config"]["recipe"]["dataset"] = HOSTILE
    write_json(folder / CONFIG, config)
    shard = sorted(folder.glob("model-*.safetensors"))[-1]
    old = b'"model.norm.weight"'
    new = b'"model.\\u001b[2Jla"'  # as long as the name of before, so that nothing moves
    assert len(old) == len(new) and old in shard.read_bytes()
    shard.write_bytes(shard.read_bytes().replace(old, new))
    for path in (folder / CONFIG, shard):
        manifest["files"][path.name] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    manifest["tensors"][f"model.{ESCAPE}la"] = manifest["tensors"].pop("model.norm.weight")
    write_json(folder / MANIFEST, manifest)
    (folder / f"{ESCAPE}notes.txt").touch()
    return folder


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_a_hostile_checkpoint_cannot_steer_the_terminal(
    command: str, hostile: Path, nestquant: Callable[..., Outcome]
) -> None:
    code, out, err = nestquant(command, hostile)
    message = out + err
    assert code == (0 if command == "inspect" else 2), message
    assert "\\x1b[2J" in message and not set("\x1b\x9b") & set(message)
    assert not [line for line in message.splitlines() if line.startswith("result: forged")]
