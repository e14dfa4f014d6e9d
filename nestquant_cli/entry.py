"""Where the `nestquant` command begins: what has to be in order before anything large is imported.

An interrupt inside an import cannot be left to the code that it lands in: libraries turn it into errors of their own,
or come out half made. It ends the process at once. Nothing is lost by that which a kill would not lose.
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

INTERRUPTED = 130  # exit code
INTERRUPTION = "interrupted; the command stopped before its end; run it again"
_STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))  # by their descriptors
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


def repair_streams() -> None:
    """Gives a process that was started with closed standard streams ones that lead nowhere.

    Otherwise the next file that is opened takes the place of a closed one, and is written into by whoever prints.
    """
    for descriptor, (name, mode) in enumerate(_STREAMS):
        if getattr(sys, name) is not None:
            continue
        try:
            os.fstat(descriptor)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != descriptor:
                os.dup2(nowhere, descriptor)
                os.close(nowhere)
        setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - it lasts as long as the process


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
