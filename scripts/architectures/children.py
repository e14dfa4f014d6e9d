"""Runs a function in a process that is forked off, so that a crash or a hang of it costs nothing else."""

import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

MEMORY = 8 << 30  # bytes that a child may take


def in_child(function: Callable[[], dict[str, Any]], log: Path, timeout: float) -> dict[str, Any]:
    """What `function` returns; {"crash": …} where it raises, dies or does not end.

    Args:
        function: what is run; its result must fit into JSON.
        log: file for what the child prints.
        timeout: seconds after which the child and its children are killed.
    """
    answer = log.with_suffix(".json")
    answer.unlink(missing_ok=True)
    begun = time.monotonic()
    child = os.fork()
    if child == 0:
        _answer(function, log, answer)
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() - begun > timeout:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return {"crash": f"no end after {timeout:.0f} s"}
        time.sleep(0.02)
    seconds = round(time.monotonic() - begun, 2)
    if not answer.is_file():
        return {"crash": f"the process died with status {status}", "said": log.read_text(errors="replace")[-1500:]}
    found: dict[str, Any] = json.loads(answer.read_text())
    return found | {"seconds": seconds} if found else {}


def directly(function: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The same in this process."""
    try:
        return function()
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        return {"crash": f"{type(error).__name__}: {first[:300]}", "said": traceback.format_exc()[-3000:]}


def _answer(function: Callable[[], dict[str, Any]], log: Path, answer: Path) -> None:
    """The child's part; it never returns."""
    try:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        file = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        part = answer.with_suffix(".part")
        part.write_text(json.dumps(directly(function), default=str))
        part.replace(answer)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(0)
