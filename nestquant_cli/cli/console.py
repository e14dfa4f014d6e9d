"""What every command shares: the two consoles, tables, the log, and exceptions as one line with an exit code."""

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
from ..base.process import BAD_INPUT, DONE, INTERRUPTED, INTERRUPTION
from ..parallel.team import launched
from .log import JsonHandler, LogFormat, handler

PLAIN_WIDTH = 160  # columns of a table in a file or a pipe; 80 would cut the names of models

# These libraries read their log level when they are imported, which is after this module, so it is set through the
# environment. What the user has set there stays.
LIBRARY_LEVELS = ("TRANSFORMERS_VERBOSITY", "DATASETS_VERBOSITY", "HF_HUB_VERBOSITY")
LIBRARY_BARS = ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS")
LIBRARY_LOGGERS = ("lm_eval", "accelerate", "numba", "filelock", "fsspec", "urllib3")

logger = logging.getLogger("nestquant")


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a standard stream is a terminal. A closed stream, which is None, is not."""
    return stream is not None and stream.isatty()


out = Console(highlight=False, emoji=False, width=None if is_terminal(sys.stdout) else PLAIN_WIDTH)
err = progress.console()


def configure(debug: bool, quiet: bool, form: LogFormat = LogFormat.text) -> None:
    """Sets what is logged: our lines at INFO, and only errors of other libraries.

    It has to be called before transformers and datasets are imported.

    Args:
        debug: log our lines and those of other libraries at DEBUG.
        quiet: log our lines at WARNING, without progress bars; so do all processes of a run but the first.
        form: format of the log, of errors and of tracebacks. Results are printed as text in either format.
    """
    quiet = quiet or not launched().leads  # of several processes, only the first one prints
    logger.setLevel(logging.DEBUG if debug else logging.WARNING if quiet else logging.INFO)
    logger.handlers = [handler(form)]
    logger.propagate = False
    if quiet or not progress.on_terminal():
        _default_environment(LIBRARY_BARS, "1")
        _default_environment(("TQDM_DISABLE",), "1")  # bars of other libraries that do not say disable=False
        _default_environment(("TQDM_MININTERVAL",), "30")  # seconds between two lines of the others
    if debug:
        logging.getLogger().handlers = [handler(form)]  # other libraries' lines and warnings have the same form
        logging.captureWarnings(True)
        return
    warnings.simplefilter("ignore")
    _default_environment(LIBRARY_LEVELS, "error")
    for name in LIBRARY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None) -> None:
    """Prints a table on standard output. The first column is aligned to the left, the others (numbers) to the right.

    Args:
        columns: headings of the columns.
        rows: values of each row, formatted by `str`; None is an empty cell.
        title: line above the table.
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
    """Prints one line on standard output, without markup or wrapping. Of several processes only the first one does."""
    if launched().leads:
        out.print(escaped(text, keep="\t"), markup=False, soft_wrap=True)


def note(text: str, **fields: object) -> None:
    """Logs what the command is doing, on standard error; nothing with --quiet.

    Args:
        text: one line.
        fields: JSON-ready numbers of that line, for a log that programs read.
    """
    logger.info("%s", text, extra={"fields": fields})


def print_ending(result: Path | None = None, *command: object) -> None:
    """Prints the last lines of a command: where the result is, and what to run next, quoted for a shell."""
    if result is not None:
        line(f"result: {result}")
    if command:
        line(f"next: nestquant {shlex.join(str(word) for word in command)}")


def print_serving(result: Path) -> None:
    """Prints how a packed checkpoint is served, quoted for a shell."""
    line(f"serve: vllm serve {shlex.quote(str(result))}")


def stream(text: str) -> None:
    """Writes a piece of generated text on standard output at once, without characters that control a terminal."""
    if not launched().leads:
        return
    try:
        out.file.write(shown(text))
        out.file.flush()
    except BrokenPipeError:
        out.on_broken_pipe()


def run(command: Callable[[], object], debug: bool = False) -> int:
    """Calls `command`, prints an exception of it as one line, and returns the exit code of the process.

    Every failure gives 2 and never 1: Python's own exit code for a crash would read as a failed quality gate.

    Args:
        command: returns the exit code, or something that is no int for 0.
        debug: print the traceback of an exception as well.
    """
    try:
        code = command()
    except KeyboardInterrupt:
        code = INTERRUPTED
    except SystemExit as leaving:  # of a library, such as rich when the reader of a pipe has gone; commands raise none
        if isinstance(leaving.code, str):
            print_error(leaving.code)
        return BAD_INPUT if leaving.code else DONE
    except Exception as error:
        if debug:
            _print_traceback(traceback.format_exc())
        if type(error).__name__ != "Abort":  # typer raises this for Ctrl-C; its class differs between versions
            if launched().leads or not getattr(error, "raised_by_all", False):
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
    return any(isinstance(attached, JsonHandler) for attached in logger.handlers)


def print_error(message: str) -> None:
    """Prints `error: message` on standard error. Line breaks in the message become spaces."""
    message = escaped(" ".join(message.split()))
    if _in_json():
        logger.error("%s", message)
        return
    err.print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)


def explain(error: Exception) -> str:
    """The line that is printed for an exception: "cause; consequence; remedy"."""
    if isinstance(error, NestQuantError):
        return str(error)
    if hasattr(error, "format_message"):  # a usage error of typer, whose class differs between its versions
        context = getattr(error, "ctx", None)
        path = context.command_path if context else "nestquant"
        return f"{error.format_message().rstrip('.')}; nothing was done; see '{path} --help'"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"no space left on the disk{_path_of(error)}; the command stopped; free space or choose another --output"
    if isinstance(error, OSError) and error.errno is not None:
        return f"{error.strerror or error}{_path_of(error)}; the command stopped; check the path and its permissions"
    if _out_of_memory(error):
        return "out of memory; the command stopped; use fewer --samples, a shorter --seqlen or another --device"
    frame = traceback.extract_tb(error.__traceback__)[-1:]
    position = f" at {os.path.basename(frame[0].filename)}:{frame[0].lineno}" if frame else ""
    return (
        f"internal error, {type(error).__name__}: {error}{position}; the command stopped; "
        "run it again with --debug for the traceback and report it"
    )


def _path_of(error: OSError) -> str:
    return f" ({error.filename})" if error.filename else ""


def _out_of_memory(error: Exception) -> bool:
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # torch.OutOfMemoryError
    return named or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))


def _default_environment(names: Sequence[str], value: str) -> None:
    for name in names:
        os.environ.setdefault(name, value)
