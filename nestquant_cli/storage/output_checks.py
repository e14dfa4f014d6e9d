"""A place on a disk, looked at before hours of work: whether it can be written, and whether there is room."""

import os
import shutil
from pathlib import Path

from ..base.errors import NestQuantError


def refuse_full_disk(folder: Path, needed: int, what: str) -> None:
    """Raises NestQuantError when a folder's disk has less room than will be needed.

    Args:
        folder: need not exist.
        needed: bytes.
        what: they are for, in the message.
    """
    place = _nearest(folder)
    free = shutil.disk_usage(place).free
    if free < needed:
        raise NestQuantError(
            f"{what} takes {needed:,} bytes and {place} has {free:,} free",
            "nothing was written",
            "free space, or choose another --output",
        )
    _refuse_unwritable(place)


def refuse_unusable_folder(folder: Path) -> None:
    """Raises NestQuantError where a path cannot be a folder: its name, a file or a link to nothing forbids it."""
    try:
        for place in (folder, *folder.parents):
            if place.is_symlink() and not place.exists():
                raise _not_used(f"{place} is a link to {os.readlink(place)}, which is not there")
            if place.exists():
                if not place.is_dir():
                    raise _not_used(f"{place} is a file")
                break
    except OSError as error:
        raise _not_used(f"{folder} cannot be used ({error.strerror or error})") from error


def refuse_unusable_file(path: Path) -> None:
    """Raises NestQuantError where a file cannot be written to a path: a folder is there, or its own cannot be one."""
    refuse_unusable_folder(path.parent)
    try:
        path.lstat()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise _not_used(f"{path} cannot be used ({error.strerror or error})") from error
    if path.is_dir():
        raise _not_used(f"{path} is a folder")
    _refuse_unwritable(_nearest(path.parent))


def _nearest(folder: Path) -> Path:
    """The folder itself where it exists, else the nearest one above it that does."""
    place = folder.absolute()
    while not os.path.exists(place):  # False for a name that is too long as well
        place = place.parent
    return place


def _refuse_unwritable(folder: Path) -> None:
    if not os.access(folder, os.W_OK | os.X_OK):
        raise NestQuantError(
            f"{folder} cannot be written to",
            "nothing was written",
            "change its permissions, or choose another --output",
        )


def _not_used(cause: str) -> NestQuantError:
    return NestQuantError(cause, "nothing was written", "choose another --output")
