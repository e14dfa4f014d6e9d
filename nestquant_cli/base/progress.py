"""Progress of long work: a bar with an ETA on a terminal, plain log lines elsewhere, nothing when quiet.

Quiet means that the logger "nestquant" does not pass INFO, which is Python's default: a program that imports the
package sees no output unless it asks for it, and the command line asks for it unless `--quiet` is given.
"""

import contextlib
import functools
import logging
import operator
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from .printable import escaped

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

T = TypeVar("T")
Advance = Callable[[int], None]

logger = logging.getLogger("nestquant")

# The pause between two log lines of a loop is 5 % of the time that it has run: 5 s at its start, 60 s from 20 minutes
# on. A job of hours does not fill a CI log.
SHORTEST_INTERVAL = 5.0  # seconds
LONGEST_INTERVAL = 60.0  # seconds
INTERVAL_FRACTION = 0.05


def track(iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yields the items of `iterable` and shows how many are done, the time elapsed and the time left.

    An item counts as done when the next one is asked for. Loops may be nested.

    Args:
        iterable: items to yield; its length is the total where it has one.
        description: a few words, "quantizing layers".
        total: number of items where `iterable` has no length; None shows a count without an ETA.
    """
    if total is None:
        total = operator.length_hint(iterable) or None
    with steps(description, total) as advance:
        for item in iterable:
            yield item
            advance(1)


@contextlib.contextmanager
def steps(description: str, total: int | None = None) -> Iterator[Advance]:
    """Shows progress of work that is not one loop. Yields `advance(count)`, to be called as items get done.

    Args:
        description: a few words, "quantizing layers".
        total: number of items; None shows a count without an ETA.
    """
    if not logger.isEnabledFor(logging.INFO):
        yield lambda count: None
    elif on_terminal():
        with _bar(description, total) as advance:
            yield advance
    else:
        with _lines(description, total) as advance:
            yield advance


@functools.lru_cache(maxsize=1)
def console() -> "Console":
    """The only console for standard error: it draws log lines and errors above a progress bar."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, emoji=False)


def draw_bars(wanted: bool) -> None:
    """Sets whether a terminal gets bars. A log that programs read gets lines."""
    _Shared.bars_wanted = wanted


def on_terminal() -> bool:
    """Whether a bar can be redrawn in place. Not so in a CI log, even if it shows colours."""
    return _Shared.bars_wanted and console().is_interactive and console().file.isatty()


def duration(seconds: float) -> str:
    """A time in seconds as people read it: "8 s", "3 min 05 s", "2 h 07 min"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes_left:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


class _Shared:
    """State that nested loops share: rich draws one live display at a time, only the outermost loop logs its end."""

    bars: "Progress | None" = None
    bars_wanted = True
    lines_open = 0


@contextlib.contextmanager
def _bar(description: str, total: int | None) -> Iterator[Advance]:
    outermost = _Shared.bars is None
    bars = _Shared.bars or _new_bars()
    if outermost:
        _Shared.bars = bars
        bars.start()
    task = bars.add_task(escaped(description), total=total)
    try:
        yield lambda count: bars.advance(task, count)
    finally:
        if outermost:
            bars.stop()
            _Shared.bars = None
        else:
            bars.remove_task(task)


def _new_bars() -> "Progress":
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        console=console(),
    )


@contextlib.contextmanager
def _lines(description: str, total: int | None) -> Iterator[Advance]:
    start = last = time.monotonic()
    done = 0
    goal = f"/{total}" if total else ""

    def advance(count: int) -> None:
        nonlocal done, last
        done += count
        now = time.monotonic()
        pause = min(LONGEST_INTERVAL, max(SHORTEST_INTERVAL, INTERVAL_FRACTION * (now - start)))
        if now - last < pause or done == total:
            return
        last = now
        elapsed = now - start
        eta = elapsed / done * (total - done) if total and 0 < done < total else None
        left = "" if eta is None else f", ETA {duration(eta)}"
        fields = _fields(description, done, total, elapsed, eta)
        logger.info("%s: %d%s, %s%s", description, done, goal, duration(elapsed), left, extra=fields)

    _Shared.lines_open += 1
    try:
        yield advance
    finally:
        _Shared.lines_open -= 1
    if done and not _Shared.lines_open:
        elapsed = time.monotonic() - start
        fields = _fields(description, done, total, elapsed, 0.0)
        logger.info("%s: %d%s, done in %s", description, done, goal, duration(elapsed), extra=fields)


def _fields(what: str, done: int, total: int | None, elapsed: float, eta: float | None) -> dict[str, Any]:
    """Numbers of a log line, for a log that programs read; times in seconds."""
    rounded = {"elapsed_seconds": round(elapsed, 1), "eta_seconds": None if eta is None else round(eta, 1)}
    return {"fields": {"event": "progress", "what": what, "done": done, "total": total, **rounded}}
