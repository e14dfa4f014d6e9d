"""`--log-format json` holds for every command: each line on standard error is a JSON object, whatever libraries say."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nestquant_cli.base import progress
from nestquant_cli.cli import console, main
from nestquant_cli.cli.log import LogFormat

ROOT = Path(__file__).resolve().parents[2]
TEXT = "--dataset {text} --seqlen 64"
SHORT = "--max-new-tokens 4 --temperature 0"
# in this order: a command may need what one before it wrote
WORDS = {
    "calibrate": f"{{model}} {TEXT} --samples 2 --output statistics",
    "quantize": f"{{model}} {TEXT} --samples 2 --output packed",
    "tune": "packed --model {model} --dataset {text} --seqlen 32 --steps 2 --held-out 2 --output tuned",
    "eval-ppl": f"packed {TEXT} --max-windows 2",
    "eval-tasks": "packed --tasks sample_piqa,sample_generate --include-path {tasks} --limit 2 --batch-size auto",
    "compare": (
        "{model} --recipes {recipe} --dataset {text} --eval-dataset {text} --seqlen 48 --samples 2 --max-windows 2 "
        "--tasks sample_piqa --include-path {tasks} --limit 2 --output compared"
    ),
    "generate": f"packed lattice {SHORT}",
    "chat": f"packed {SHORT}",
    "inspect": "packed",
    "verify": "packed --original {model}",
    "report": f"packed --baseline {{model}} {TEXT} --max-windows 2 --max-new-tokens 4 --output reported",
    "push": "packed me/tiny --dry-run --base-model org/tiny --license mit",
    "export": "packed --output exported",
}
# One process for all commands, which read the descriptors that children inherit; codes go to standard output.
PROGRAM = """
import io, json, os, shlex, sys
from nestquant_cli.cli.main import main
codes = {}
for name, words in json.loads(sys.argv[1]).items():
    os.dup2(os.open(name + ".err", os.O_WRONLY | os.O_CREAT), 2)
    os.dup2(os.open(name + ".out", os.O_WRONLY | os.O_CREAT), 1)
    sys.stdin = io.StringIO("hello\\n")
    try:
        main([name, *shlex.split(words), *sys.argv[2:]])
    except SystemExit as leaving:
        codes[name] = leaving.code
    sys.stdout.flush()
    sys.stderr.flush()
with open("codes.json", "w") as file:
    json.dump(codes, file)
"""


@pytest.fixture(scope="module")
def folder(talking: Path, tiny_text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where every command was run, outside any git repository: NAME.err has its standard error."""
    folder = tmp_path_factory.mktemp("log")
    places = {"model": talking, "text": tiny_text_file, "tasks": ROOT / "tests" / "tasks"}
    places["recipe"] = ROOT / "configs" / "rtn-w4.yaml"
    words = {name: text.format(**places) for name, text in WORDS.items()}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TQDM_", "HF_DATASETS_DISABLE"))}
    settings = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GIT_CEILING_DIRECTORIES": str(folder.parent)}
    command = [sys.executable, "-c", PROGRAM, json.dumps(words), "--log-format", "json"]
    done = subprocess.run(command, cwd=folder, env=kept | settings, capture_output=True, text=True)
    assert (folder / "codes.json").is_file(), done.stderr + (folder / "calibrate.err").read_text()
    return folder


def test_every_command_is_tried() -> None:
    assert [each.name for each in main.app.registered_commands] == list(WORDS)


def test_lines_of_libraries_have_the_form_too(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "_default_environment", lambda names, value: None)
    for name in (None, "nestquant"):  # put back what is changed
        monkeypatch.setattr(logging.getLogger(name), "handlers", [])
        monkeypatch.setattr(logging.getLogger(name), "propagate", logging.getLogger(name).propagate)
    level = logging.getLogger("nestquant").level
    console.configure(debug=True, quiet=False, form=LogFormat.json)
    try:
        logging.getLogger("some.library").warning("two\nlines")
        logging.getLogger("nestquant").debug("ours")
    finally:
        logging.captureWarnings(False)
        logging.getLogger("nestquant").setLevel(level)
        progress.draw_bars(True)
    message = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [(line["level"], line["message"]) for line in message] == [("warning", "two\nlines"), ("debug", "ours")]


@pytest.mark.slow
@pytest.mark.parametrize("name", WORDS)
def test_standard_error_is_json_lines(folder: Path, name: str) -> None:
    lines = (folder / f"{name}.err").read_text(encoding="utf-8").replace("\r", "\n").splitlines()
    assert json.loads((folder / "codes.json").read_text())[name] == 0, lines[-3:]
    for line in lines:
        assert {"time", "level", "message"} <= json.loads(line).keys(), line
    assert name == "inspect" or lines
