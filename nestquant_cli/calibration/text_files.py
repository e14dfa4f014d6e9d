"""Reads texts and records from files, a piece at a time: plain or gzipped, without CRLF and byte order marks."""

import codecs
import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ..base.errors import NestQuantError, first_line
from ..storage.files import BYTE_ORDER_MARK

CRLF = "\r\n"
NOT_READ = "no text was read"
PIECE = 1 << 20  # bytes read at a time
_ZIPPED = ".gz"

Records = Iterator[tuple[str, Any]]  # place, such as "file line 3", for errors; and the record


@dataclass
class Marks:
    """What was removed while a text was read.

    Attributes:
        crlf: whether line ends of Windows were replaced by those of Unix.
        byte_order_mark: whether the file began with a byte order mark.
    """

    crlf: bool = False
    byte_order_mark: bool = False


def suffix_of(path: str) -> str:
    """The suffix of a file's name, such as ".jsonl", without that of gzip."""
    plain = path.lower().removesuffix(_ZIPPED)
    return Path(plain).suffix


def text_pieces(path: str, marks: Marks) -> Iterator[str]:
    """Yields the characters of a UTF-8 file in pieces, with its line ends.

    Raises:
        NestQuantError: missing, unreadable, damaged, or not UTF-8.
    """
    decoder, read, first = codecs.getincrementaldecoder("utf-8")(), 0, True
    with opened(path) as file:
        while True:
            data = file.read(PIECE)
            pending = len(decoder.getstate()[0])
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                raise _not_utf8(path, read - pending + error.start) from error
            read += len(data)
            if text:
                yield _without_mark(text, marks) if first else text
                first = False
            if not data:
                return


def with_line_feeds(pieces: Iterable[str], marks: Marks) -> Iterator[str]:
    """Replaces CRLF by LF in a text, also where the two characters are in different pieces."""
    carried = ""
    for new in pieces:
        piece = carried + new
        carried = "\r" if piece.endswith("\r") else ""
        yield line_feeds(piece.removesuffix(carried) if carried else piece, marks)
    yield carried


def line_feeds(text: str, marks: Marks) -> str:
    """Replaces CRLF by LF, so that a copy that went through another system is the same text."""
    marks.crlf |= CRLF in text
    return text.replace(CRLF, "\n")


def jsonl_records(path: str, marks: Marks) -> Records:
    """Yields the values of a file with one JSON value a line; empty lines are skipped."""
    read = 0
    with opened(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise _not_utf8(path, read + error.start) from error
            read += len(line)
            text = _without_mark(text, marks) if number == 1 else text
            if not text.strip():
                continue
            try:
                yield f"{path} line {number}", json.loads(text)
            except (ValueError, RecursionError) as error:
                raise NestQuantError(
                    f"{path} line {number} is not JSON", NOT_READ, "write one JSON object a line"
                ) from error


def json_records(path: str, marks: Marks) -> Records:
    """Yields the items of a file that is one JSON list."""
    try:
        values = json.loads("".join(text_pieces(path, marks)))
    except (ValueError, RecursionError) as error:
        raise NestQuantError(f"{path} is not JSON ({error})", NOT_READ, "write a list of objects") from error
    if not isinstance(values, list):
        raise NestQuantError(f"{path} is not a JSON list", NOT_READ, "write a list of objects, or one object a line")
    yield from ((f"{path} item {number}", value) for number, value in enumerate(values))


def parquet_records(path: str) -> Records:
    """Yields the rows of a parquet file."""
    import datasets

    with opened(path):  # its error is clearer than the library's where the file is missing
        pass
    try:
        rows = datasets.load_dataset("parquet", data_files=str(Path(path).expanduser()), split="train", streaming=True)
        yield from ((f"{path} row {number}", row) for number, row in enumerate(rows))
    except NestQuantError:
        raise
    except Exception as error:  # pyarrow and datasets raise errors of many kinds
        raise NestQuantError(
            f"{path} cannot be read as parquet ({first_line(error)})", NOT_READ, "check the file"
        ) from error


def saved_records(folder: str, split: str) -> Callable[[], Records]:
    """A function that reads the rows of a data set written by `save_to_disk` of the `datasets` library.

    Args:
        folder: folder of the data set.
        split: name of the split, where it has several.

    Raises:
        NestQuantError: the folder is something else, or has other splits.
    """
    import datasets

    try:
        saved = datasets.load_from_disk(str(Path(folder).expanduser()))
    except Exception as error:  # the library raises errors of many kinds
        raise NestQuantError(
            f"{folder} is not a data set of save_to_disk ({first_line(error)})",
            NOT_READ,
            "give a file, or such a folder",
        ) from error
    if isinstance(saved, dict):
        if split not in saved:
            known = ", ".join(saved)
            raise NestQuantError(f"{folder} has no split '{split}'", NOT_READ, f"save one of that name; it has {known}")
        saved = saved[split]
    return lambda: ((f"{folder} row {number}", row) for number, row in enumerate(saved))


@contextmanager
def opened(path: str) -> Iterator[IO[bytes]]:
    """A file open for reading, unzipped by its name.

    Raises:
        NestQuantError: missing or unreadable, or its gzip data is damaged.
    """
    place = Path(path).expanduser()
    try:
        with gzip.open(place, "rb") if path.lower().endswith(_ZIPPED) else open(place, "rb") as file:
            yield file  # type: ignore[misc]
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise NestQuantError(
            f"{path} is damaged or not gzipped ({first_line(error)})", NOT_READ, "copy it again"
        ) from error
    except OSError as error:
        raise NestQuantError(f"{path} cannot be read ({error.strerror})", NOT_READ, "check the path") from error


def _without_mark(text: str, marks: Marks) -> str:
    marks.byte_order_mark |= text.startswith(BYTE_ORDER_MARK)
    return text.removeprefix(BYTE_ORDER_MARK)


def _not_utf8(path: str, byte: int) -> NestQuantError:
    return NestQuantError(f"{path} is not UTF-8 text (byte {byte})", NOT_READ, "convert the file to UTF-8")
