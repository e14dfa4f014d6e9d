"""Where the `nestquant` command begins: signals and standard streams, before anything large is imported.

An interrupt during an import ends the process at once: libraries turn it into errors of their own, or stay half
imported. Nothing is lost that a kill would not lose.
"""

import contextlib
import itertools
import json
import os
import signal
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from types import FrameType
from typing import NoReturn

from .base.process import INTERRUPTED, INTERRUPTION, repair_streams

_IMPORTING = "<frozen importlib"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and ends the process with its exit code.

    Args:
        arguments: what follows the program's name; sys.argv[1:] where None.
    """
    try:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell's background jobs ignore it
            signal.signal(signal.SIGINT, _interrupt)
        repair_streams()
        from .cli.main import main as run

        run(arguments)
    except KeyboardInterrupt:
        _stop()


def _interrupt(_: int, frame: FrameType | None) -> None:
    while frame is not None:
        if frame.f_code.co_filename.startswith(_IMPORTING):
            _stop()
        frame = frame.f_back
    raise KeyboardInterrupt


def _stop() -> NoReturn:
    """Says so and ends the process, with as little code as possible."""
    line = f"error: {INTERRUPTION}"
    if _wants_json(sys.argv):
        at = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        line = json.dumps({"time": at, "level": "error", "message": INTERRUPTION})
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode())
    os._exit(INTERRUPTED)


def _wants_json(words: Sequence[str]) -> bool:
    return "--log-format=json" in words or ("--log-format", "json") in itertools.pairwise(words)
