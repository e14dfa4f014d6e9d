"""Runs a function in a process that is forked off, so that a crash or a hang of it costs nothing else."""

import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MEMORY = 8 << 30  # bytes that a child may take
Note = Callable[[str, dict[str, Any]], None]  # tells the result of a part by its label


def in_child(function: Callable[[Note], None], notes: Path, timeout: float) -> str:
    """Runs `function` in a child; why the child did not come to its end, or an empty text.

    Args:
        function: what is run. It calls its argument with the label and the result of each part; results are JSON.
        notes: file to which these are appended, one line each; what the child prints goes beside it.
        timeout: seconds of one part, after which the child and its children are killed.
    """
    child = os.fork()
    if child == 0:
        _run(function, notes)
    seen, since = -1, time.monotonic()
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return f"the process died with status {status}" if status else ""
        size = notes.stat().st_size if notes.exists() else 0
        if size != seen:
            seen, since = size, time.monotonic()
        if time.monotonic() - since > timeout:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return f"no end after {timeout:.0f} s"
        time.sleep(0.02)


def read_notes(notes: Path) -> dict[str, dict[str, Any]]:
    """The results that children have noted, by label."""
    lines = notes.read_text(encoding="utf-8").splitlines() if notes.exists() else []
    return dict(map(json.loads, lines))


def _run(function: Callable[[Note], None], notes: Path) -> None:
    """The child's part; it never returns."""

    def note(label: str, result: dict[str, Any]) -> None:
        with notes.open("a", encoding="utf-8") as file:
            file.write(json.dumps([label, result], default=str) + "\n")

    status = 1
    try:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        said = os.open(notes.with_suffix(".log"), os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(said, 1)
        os.dup2(said, 2)
        function(note)
        sys.stdout.flush()
        sys.stderr.flush()
        status = 0
    finally:
        os._exit(status)
