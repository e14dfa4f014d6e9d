"""Files that are either whole or absent: written to a temporary name, synced and renamed."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import NestQuantError

HASH_CHUNK = 1 << 22  # bytes read at a time; keeps hashing of any file at constant memory


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it is synced and renamed to `path`, on failure removed.

    Raises:
        NestQuantError: the disk is full or the folder cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
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


def remove_leftovers(folder: Path) -> None:
    """Removes what `replacing` could not remove from a folder, because it was killed or lost the right to."""
    for path in folder.glob(".*.part"):
        path.unlink()


def not_written(path: Path, error: Exception) -> NestQuantError:
    """The error for a file that a full disk or a lost permission keeps from being written."""
    reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
    return NestQuantError(
        f"{path} cannot be written ({reason})",
        "the command stopped; what is finished is kept",
        "free space or mend its permissions and repeat the command, or choose another --output",
    )


def write_text(path: Path, text: str) -> None:
    """Writes `text` as UTF-8, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically. NaN and infinities are refused (ValueError)."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Parses a JSON file.

    Raises:
        NestQuantError: the file is missing, unreadable or not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise NestQuantError(
            f"{path} cannot be read ({error.strerror or error})", "nothing was done", "check the path"
        ) from error
    except (ValueError, RecursionError) as error:  # nesting deeper than Python's parser goes
        raise NestQuantError(
            f"{path} is not valid JSON ({error})",
            "nothing was done",
            "write the file again with the command that made it",
        ) from error


def read_yaml(path: Path) -> dict[str, Any]:
    """Parses a YAML file that holds a mapping.

    Raises:
        NestQuantError: the file is missing, unreadable, not YAML, or something else than a mapping.
    """
    import yaml

    try:
        value = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise NestQuantError(
            f"{path} cannot be read as YAML ({reason})", "nothing was done", "check the file"
        ) from error
    if not isinstance(value, dict):
        raise NestQuantError(f"{path} is not a YAML mapping", "nothing was done", "write lines such as 'samples: 16'")
    return value


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(HASH_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
