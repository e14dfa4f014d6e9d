"""Records which functions of the package are called, as a walk from file to file; scripts/trace_walk.py uses it."""

import functools
import itertools
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import nestquant_cli
from nestquant_cli.parallel.tiles import run_pieces

PACKAGE = Path(nestquant_cli.__file__).resolve().parent


@dataclass(frozen=True)
class Function:
    """A function of the package.

    Attributes:
        file: path below the package, such as "e8/code.py".
        name: qualified name.
        line: first line.
    """

    file: str
    name: str
    line: int


@dataclass(frozen=True)
class Walk:
    """Functions in the order of their first call.

    Attributes:
        functions: each one once.
    """

    functions: tuple[Function, ...]

    @property
    def path(self) -> list[str]:
        """Files in the order in which they are visited; one that is left and entered again is there twice."""
        return [file for file, _ in itertools.groupby(function.file for function in self.functions)]

    @property
    def files(self) -> list[str]:
        """Files in the order of their first visit."""
        return list(dict.fromkeys(self.path))

    @property
    def moves(self) -> int:
        """Steps from one file to another."""
        return len(self.path) - 1

    @property
    def returns(self) -> int:
        """Moves to a file that was left before."""
        return len(self.path) - len(self.files)

    @property
    def rooms(self) -> list[str]:
        """Folders of the package in the order in which they are visited, with all that is in them."""
        return [room for room, _ in itertools.groupby(file.split("/")[0] for file in self.path)]


@dataclass
class Recorder:
    """Records the package's functions that a thread calls.

    Attributes:
        inner: code of a function whose first call is marked.
        calls: every call, in order.
        start: number of calls before the marked one; -1 before it comes.
        stop: number of calls when it returned.
    """

    inner: CodeType | None = None
    calls: list[Function] = field(default_factory=list)
    start: int = -1
    stop: int = -1
    _frame: FrameType | None = None

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        """A profile function for `sys.setprofile`."""
        if event == "return" and frame is self._frame:
            self._frame, self.stop = None, len(self.calls)
        if event != "call":
            return
        if frame.f_code is self.inner and self.start < 0:
            self._frame, self.start = frame, len(self.calls)
        function = _function(frame.f_code)
        if function is not None and not _compiling(frame):
            self.calls.append(function)


@functools.cache
def _function(code: CodeType) -> Function | None:
    """The function of the package that a code object is; None for lambdas, modules, class bodies and other code."""
    path, name = Path(code.co_filename), code.co_name
    if name.startswith("<") or "__qualname__" in code.co_names or not path.is_relative_to(PACKAGE):
        return None
    return Function(path.relative_to(PACKAGE).as_posix(), name, code.co_firstlineno)


def _compiling(frame: FrameType | None) -> bool:
    """Whether Numba calls this to compile something, which it does once on a machine."""
    while frame is not None:
        if "/numba/" in frame.f_code.co_filename:
            return True
        frame = frame.f_back
    return False


def record(work: Callable[[], Any], inner: CodeType | None = None) -> tuple[Recorder, Any]:
    """Runs `work` and records it.

    It runs as one piece of `run_pieces`, so that whatever it divides into pieces stays on the thread that is recorded.

    Returns:
        the recorder, and what `work` returned.
    """
    recorder, results = Recorder(inner), []

    def piece(_: None) -> None:
        sys.setprofile(recorder)
        try:
            results.append(work())
        finally:
            sys.setprofile(None)

    run_pieces(piece, [None])
    return recorder, results[0]


def walk_of(calls: Iterable[Function]) -> Walk:
    """The walk of some calls."""
    return Walk(tuple(dict.fromkeys(calls)))
