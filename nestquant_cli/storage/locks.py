"""A lock that one process holds while it writes a folder; the system releases it however the process ends.

It is a file with `flock` on it. The file may stay behind: what counts is whether a process holds it.
"""

import contextlib
import fcntl
import logging
import os
import socket
import time
from pathlib import Path

from ..base.errors import NestQuantError
from .files import not_written

ATTEMPTS, PAUSE = 20, 0.05  # tries and seconds between them: a process that only asks takes the lock for an instant

logger = logging.getLogger("nestquant")


class Lock:
    """A lock that is taken when the object is made, and held until `release`.

    Args:
        path: file of the lock, in a folder that exists.
        folder: folder that is locked, for the message.

    Raises:
        NestQuantError: another process holds it, or the file cannot be made.
    """

    def __init__(self, path: Path, folder: Path) -> None:
        self.path = path
        self._descriptor = _take(path, folder)

    def release(self, remove: bool = False) -> None:
        """Lets others in; may be called twice.

        Args:
            remove: delete the file too, while it is still held.
        """
        if remove:
            self.path.unlink(missing_ok=True)
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            self.release()


def refuse_held(path: Path, folder: Path) -> None:
    """Raises NestQuantError when another process holds the lock with this file; the file need not exist."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _held(path, folder) from None
    except OSError:  # a file system without locks
        pass
    finally:
        os.close(descriptor)


def _take(path: Path, folder: Path) -> int | None:
    """The descriptor that holds the lock; None where the file system has no locks."""
    for _ in range(ATTEMPTS):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise not_written(path, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            time.sleep(PAUSE)
            continue
        except OSError as error:
            os.close(descriptor)
            logger.warning("%s cannot be locked (%s): start no second command that writes it", folder, error.strerror)
            return None
        if _is_at(descriptor, path):
            with contextlib.suppress(OSError):  # a full disk; the lock holds all the same
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
            return descriptor
        os.close(descriptor)  # whoever had it has removed the file since it was opened
    raise _held(path, folder)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def _held(path: Path, folder: Path) -> NestQuantError:
    try:
        holder = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        holder = ""
    return NestQuantError(
        f"another command is writing {folder} ({holder or 'it is locked'})",
        "nothing was written",
        "wait for it to end, or choose another --output",
    )
