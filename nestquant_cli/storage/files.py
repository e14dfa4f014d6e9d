"""Files that are either whole or absent: written to a temporary name, synced and renamed."""

import contextlib
import errno
import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..base.errors import NestQuantError

_LONGEST = 200  # bytes of a name that its temporary name repeats; most file systems allow 255 in all
_SPACE = "free space and repeat the command, or choose another --output"
_RIGHTS = "correct its permissions and repeat the command, or choose another --output"
_OTHERWISE = "choose another --output, or correct that and repeat the command"
_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), _SPACE),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), _RIGHTS),
}

BYTE_ORDER_MARK = "\ufeff"  # some editors on Windows write it before a text; it is no part of the text
HASH_CHUNK = 1 << 22  # bytes read at a time, so that hashing takes constant memory


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path in the folder of `path`, which is created if it is missing.

    If the block succeeds, the temporary file is synced to disk and renamed to `path`; if it fails, it is removed.

    Raises:
        NestQuantError: the disk is full or the folder cannot be written to.
    """
    path = Path(path)
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:
        raise not_written(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def leftovers(path: Path) -> list[Path]:
    """Temporary files of `path` that `replacing` left behind, because it was killed or could not remove them."""
    form = re.compile(re.escape(_stem(path)) + r"\.\d+\.part")
    return [file for file in path.parent.iterdir() if form.fullmatch(file.name)]


def not_written(path: Path, error: Exception) -> NestQuantError:
    """The error for a file that cannot be written, with a remedy for a full disk, missing permission or any other."""
    reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
    return NestQuantError(
        f"{path} cannot be written ({reason})",
        "the command stopped; what is finished is kept",
        _REMEDIES.get(getattr(error, "errno", 0), _OTHERWISE),
    )


def write_text(path: Path, text: str) -> None:
    """Writes `text` as UTF-8, atomically.

    Raises:
        NestQuantError: the file cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically.

    Raises:
        ValueError: `value` contains NaN or infinity.
        NestQuantError: the file cannot be written.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Parses a JSON file.

    Raises:
        NestQuantError: the file is missing, unreadable or not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise NestQuantError(
            f"{path} cannot be read ({error.strerror or error})", "nothing was done", "check the path"
        ) from error
    except (ValueError, RecursionError) as error:  # RecursionError: nested too deeply for Python's parser
        raise NestQuantError(
            f"{path} is not valid JSON ({error})",
            "nothing was done",
            "write the file again with the command that made it",
        ) from error


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(HASH_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _temporary(path: Path) -> Path:
    return path.with_name(f"{_stem(path)}.{os.getpid()}.part")


def _stem(path: Path) -> str:
    """What the temporary names of a file begin with. A long name is cut and gets a hash, so that it stays unique."""
    name = os.fsencode(path.name)
    if len(name) > _LONGEST:
        return f".{os.fsdecode(name[:_LONGEST])}-{hashlib.sha256(name).hexdigest()[:8]}"
    return f".{path.name}"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
