"""What every command shares: the two consoles, tables, the log, and exceptions told in one line with an exit code."""

import errno
import logging
import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TextIO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..base import progress
from ..base.errors import NestQuantError
from ..base.printable import escaped, shown
from ..base.process import INTERRUPTED, INTERRUPTION
from ..parallel.team import launched
from .log import JsonHandler, LogFormat, handler

DONE, GATE_FAILED, BAD_INPUT = 0, 1, 2  # exit codes, beside INTERRUPTED
PLAIN_WIDTH = 160  # columns of a table in a file or a pipe, where 80 would cut model names

# Their level is read when they are imported, after this module: only the environment reaches them. What the user has
# set stays.
LIBRARY_LEVELS = ("TRANSFORMERS_VERBOSITY", "DATASETS_VERBOSITY", "HF_HUB_VERBOSITY")
LIBRARY_BARS = ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS")
LIBRARY_LOGGERS = ("lm_eval", "accelerate", "numba", "filelock", "fsspec", "urllib3")

logger = logging.getLogger("nestquant")


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a standard stream is one; a closed one, which is None, is not."""
    return stream is not None and stream.isatty()


out = Console(highlight=False, emoji=False, width=None if is_terminal(sys.stdout) else PLAIN_WIDTH)
err = progress.console()


def configure(debug: bool, quiet: bool, form: LogFormat = LogFormat.text) -> None:
    """Sets what is logged: our lines at INFO (WARNING with `quiet`, DEBUG with `debug`), other libraries' errors only.

    Call it before transformers and datasets are imported.

    Args:
        form: format of the log, with errors and tracebacks in it; results are for people in either format.
    """
    quiet = quiet or not launched().leads  # of several processes the first one talks
    logger.setLevel(logging.DEBUG if debug else logging.WARNING if quiet else logging.INFO)
    logger.handlers = [handler(form)]
    logger.propagate = False
    if quiet or not progress.on_terminal():
        _default_environment(LIBRARY_BARS, "1")
        _default_environment(("TQDM_DISABLE",), "1")  # other libraries' bars, where they do not insist
        _default_environment(("TQDM_MININTERVAL",), "30")  # seconds between the lines of the others
    if debug:
        logging.getLogger().handlers = [handler(form)]  # other libraries' lines and warnings have the same form
        logging.captureWarnings(True)
        return
    warnings.simplefilter("ignore")
    _default_environment(LIBRARY_LEVELS, "error")
    for name in LIBRARY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None) -> None:
    """Prints a table on standard output: the first column to the left, the others (numbers) to the right.

    Args:
        columns: the headings.
        rows: one sequence of values a row, formatted by `str`; None is an empty cell.
        title: a line above the table.
    """
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        grid.add_column(Text(escaped(column)), justify="right" if index else "left")
    for row in rows:
        grid.add_row(*(Text("" if value is None else escaped(str(value))) for value in row))
    if not launched().leads:
        return
    if title:
        line(title)
    out.print(grid)


def line(text: str) -> None:
    """Prints one line on standard output: no markup, no wrapping. Of several processes the first one does."""
    if launched().leads:
        out.print(escaped(text, keep="\t"), markup=False, soft_wrap=True)


def note(text: str, **fields: object) -> None:
    """Tells what goes on, on standard error: not part of the result, and silent with --quiet.

    Args:
        text: one line.
        fields: its figures, JSON-ready, for a log that programs read.
    """
    logger.info("%s", text, extra={"fields": fields})


def ending(result: Path | None = None, *command: object) -> None:
    """The last lines of a command: the file or folder with the result, and what to run next, as a shell takes it."""
    if result is not None:
        line(f"result: {result}")
    if command:
        line(f"next: nestquant {shlex.join(str(word) for word in command)}")


def stream(text: str) -> None:
    """Writes a piece of generated text on standard output at once, without anything that would steer a terminal."""
    if not launched().leads:
        return
    try:
        out.file.write(shown(text))
        out.file.flush()
    except BrokenPipeError:
        out.on_broken_pipe()


def run(command: Callable[[], object], debug: bool = False) -> int:
    """Calls `command` and returns the exit code of the process, having told an exception in one line.

    Every failure gives 2 and never 1: Python's own exit code for a crash would read as a failed quality gate.

    Args:
        command: its value is the exit code where it is an int, else the exit code is 0.
        debug: print the traceback as well.
    """
    try:
        code = command()
    except KeyboardInterrupt:
        code = INTERRUPTED
    except SystemExit as leaving:  # never a command's own: a library's, or rich's where the reader of a pipe has gone
        if isinstance(leaving.code, str):
            print_error(leaving.code)
        return BAD_INPUT if leaving.code else DONE
    except Exception as error:
        if debug:
            _print_traceback(traceback.format_exc())
        if type(error).__name__ != "Abort":  # typer's word for Ctrl-C, in several of its versions
            if launched().leads or not getattr(error, "everywhere", False):
                print_error(explain(error))
            return BAD_INPUT
        code = INTERRUPTED
    if code == INTERRUPTED:
        print_error(INTERRUPTION)
    return code if isinstance(code, int) else DONE


def _print_traceback(text: str) -> None:
    if _in_json():
        logger.debug("%s", text)
    else:
        err.print(escaped(text, keep="\n\t"), markup=False, soft_wrap=True)


def _in_json() -> bool:
    return any(isinstance(each, JsonHandler) for each in logger.handlers)


def print_error(message: str) -> None:
    """Prints `error: message` on standard error, as one line whatever the message holds."""
    message = escaped(" ".join(message.split()))
    if _in_json():
        logger.error("%s", message)
        return
    err.print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)


def explain(error: Exception) -> str:
    """The line for an exception: cause; consequence; remedy."""
    if isinstance(error, NestQuantError):
        return str(error)
    if hasattr(error, "format_message"):  # a usage error of typer, whose class differs between its versions
        context = getattr(error, "ctx", None)
        path = context.command_path if context else "nestquant"
        return f"{error.format_message().rstrip('.')}; nothing was done; see '{path} --help'"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"no space left on the disk{_place(error)}; the command stopped; free space or choose another --output"
    if isinstance(error, OSError) and error.errno is not None:
        return f"{error.strerror or error}{_place(error)}; the command stopped; check the path and its permissions"
    if _out_of_memory(error):
        return "out of memory; the command stopped; use fewer --samples, a shorter --seqlen or another --device"
    frame = traceback.extract_tb(error.__traceback__)[-1:]
    place = f" at {os.path.basename(frame[0].filename)}:{frame[0].lineno}" if frame else ""
    return (
        f"internal error, {type(error).__name__}: {error}{place}; the command stopped; "
        "run it again with --debug for the traceback and report it"
    )


def _place(error: OSError) -> str:
    return f" ({error.filename})" if error.filename else ""


def _out_of_memory(error: Exception) -> bool:
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # torch.OutOfMemoryError
    return named or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))


def _default_environment(names: Sequence[str], value: str) -> None:
    for name in names:
        os.environ.setdefault(name, value)
