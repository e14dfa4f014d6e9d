"""Checks of an output path before hours of work: whether it can be written, and whether the disk has room."""

import os
import shutil
from pathlib import Path

from ..base.errors import NestQuantError


def refuse_full_disk(folder: Path, needed: int, what: str) -> None:
    """Refuses a disk with less free space than will be needed, and a folder that cannot be written to.

    Args:
        folder: folder on that disk; it need not exist yet.
        needed: bytes that will be written.
        what: what they are for, such as "the checkpoint", in the message.

    Raises:
        NestQuantError: too little space, or no permission to write.
    """
    existing = _nearest(folder)
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise NestQuantError(
            f"{what} takes {needed:,} bytes and {existing} has {free:,} free",
            "nothing was written",
            "free space, or choose another --output",
        )
    _refuse_unwritable(existing)


def refuse_unusable_folder(folder: Path) -> None:
    """Refuses a path that cannot become a folder.

    Raises:
        NestQuantError: the path or a folder above it is a file, a link to nothing, or has a name that cannot be used.
    """
    try:
        for path in (folder, *folder.parents):
            if path.is_symlink() and not path.exists():
                raise _not_used(f"{path} is a link to {os.readlink(path)}, which is not there")
            if path.exists():
                if not path.is_dir():
                    raise _not_used(f"{path} is a file")
                break
    except OSError as error:
        raise _not_used(f"{folder} cannot be used ({error.strerror or error})") from error


def refuse_unusable_file(path: Path) -> None:
    """Refuses a path that no file can be written to. An existing file may be replaced.

    Raises:
        NestQuantError: the path is a folder, its folder cannot be one or be written to, or its name cannot be used.
    """
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
    """The folder itself if it exists, else the nearest folder above it that does."""
    path = folder.absolute()
    while not os.path.exists(path):  # False for a name that is too long as well
        path = path.parent
    return path


def _refuse_unwritable(folder: Path) -> None:
    if not os.access(folder, os.W_OK | os.X_OK):
        raise NestQuantError(
            f"{folder} cannot be written to",
            "nothing was written",
            "change its permissions, or choose another --output",
        )


def _not_used(cause: str) -> NestQuantError:
    return NestQuantError(cause, "nothing was written", "choose another --output")
