"""Completion, colours and the log as shells, terminals and other programs see them, in processes of their own."""

import json
import os
import pty
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-7]|9[0-7]|38)(?:;\d+)*m")


def environment(**settings: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    return kept | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | settings


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A `nestquant` on a PATH of its own."""
    path = tmp_path / "bin" / "nestquant"
    path.parent.mkdir()
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m nestquant_cli "$@"\n')
    path.chmod(0o755)
    return path


@pytest.fixture
def complete(program: Path, tmp_path: Path) -> Callable[[str], list[str]]:
    """What bash offers for a line, by the script that `--show-completion` prints."""
    if not shutil.which("bash"):
        pytest.skip("there is no bash")
    shown = environment(_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1", PATH=f"{program.parent}:{os.environ['PATH']}")
    script = subprocess.run(
        ["nestquant", "--show-completion", "bash"], env=shown, capture_output=True, text=True, check=True
    )
    (tmp_path / "completion.sh").write_text(script.stdout)

    def offers(line: str) -> list[str]:
        words = line.split(" ")
        lines = [
            f"source {tmp_path / 'completion.sh'}",
            f"COMP_WORDS=({' '.join(words[:-1])} '{words[-1]}'); COMP_CWORD={len(words) - 1}",
            "_nestquant_completion nestquant",
            r'printf "%s\n" "${COMPREPLY[@]}"',
        ]
        done = subprocess.run(["bash", "-c", "\n".join(lines)], env=shown, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    return offers


def test_bash_completes_commands_options_and_values(complete: Callable[[str], list[str]]) -> None:
    assert complete("nestquant eval") == ["eval-ppl", "eval-tasks"]
    assert complete("nestquant eval-ppl --base") == ["--baseline"]
    assert complete("nestquant eval-ppl --bos ") == ["default", "each", "none"]
    assert complete("nestquant eval-ppl --dataset wi") == ["wikitext2"]
    assert complete("nestquant quantize --method ") == ["nestquant", "integer", "glvq"]


def terminal(*words: str, **settings: str) -> str:
    """What a command writes to a terminal that knows colours."""
    main, side = pty.openpty()
    command = [sys.executable, "-m", "nestquant_cli", *words]
    child = subprocess.Popen(
        command, stdin=side, stdout=side, stderr=side, cwd="/", env=environment(TERM="xterm-256color", **settings)
    )
    os.close(side)
    seen = b""
    while True:
        try:
            seen += os.read(main, 65536)
        except OSError:  # the other end is closed
            break
    child.wait()
    os.close(main)
    return seen.decode(errors="replace")


@pytest.mark.parametrize("words", [["quantise"], ["--help"]])
def test_no_color_means_none(words: list[str]) -> None:
    assert COLOUR.search(terminal(*words))
    assert not COLOUR.search(terminal(*words, NO_COLOR="1"))


def test_the_log_in_json_is_one_object_a_line(talking_packed: Path, tiny_text_file: Path, tmp_path: Path) -> None:
    text = ["--dataset", str(tiny_text_file), "--seqlen", "64", "--max-windows", "2"]
    words = [sys.executable, "-m", "nestquant_cli", "eval-ppl", str(talking_packed), *text, "--log-format", "json"]
    done = subprocess.run(words, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert all({"time", "level", "message"} <= line.keys() for line in lines)
    assert lines[0]["message"].startswith("scoring ") and lines[0]["level"] == "info"
    last = lines[-1]
    assert (last["event"], last["done"], last["total"], last["eta_seconds"]) == ("progress", 2, 2, 0)
    assert "perplexity" in done.stdout
    failed = subprocess.run([*words, "--seqlen", "9999999"], env=environment(), capture_output=True, text=True)
    lines = [json.loads(line) for line in failed.stderr.splitlines()]
    assert failed.returncode == 2 and lines[-1]["level"] == "error" and "fewer than one window" in lines[-1]["message"]
