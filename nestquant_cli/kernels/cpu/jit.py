"""Numba's compiler for the CPU kernels, which keeps compiled code on disk wherever there is a place for it.

Numba looks for a place in NUMBA_CACHE_DIR, next to the package and in the user's cache folder, and ends the program
where it finds none. Here a folder of the user under the temporary directory is the next choice, and no cache at all the
last. Likewise, a kept file that cannot be read or written costs the time to compile and not the program.

Numba compiles a function again when its own file has changed. What it calls is compiled into it, so here it is compiled
again when any file of this folder has changed.
"""

import hashlib
import logging
import os
import stat
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numba
from numba.core.caching import FunctionCache, IndexDataCacheFile

_HINT = "set NUMBA_CACHE_DIR to a folder of yours to keep it"

logger = logging.getLogger("nestquant")


def njit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """As `numba.njit` with these options and a cache."""

    def compiled(function: Callable[..., Any]) -> Any:
        dispatcher = numba.njit(**options)(function)
        cache = _cache_of(function)
        if cache is not None:
            dispatcher._cache = cache  # what its enable_caching sets
        return dispatcher

    return compiled


class _Cache(FunctionCache):  # type: ignore[misc, unused-ignore]
    """Numba's own, where an unusable file is passed over: that of another user, a full disk, half a file."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        stamp = self._impl.locator.get_source_stamp(), _fingerprint(Path(function.__code__.co_filename).parent)
        self._cache_file = IndexDataCacheFile(self._cache_path, self._impl.filename_base, stamp)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception as error:  # what pickle raises on half a file has no common type
            _warn(f"compiled code in {self.cache_path} cannot be read ({error})")
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except Exception as error:  # it reads what is there first
            _warn(f"compiled code in {self.cache_path} cannot be written ({error})")


def _cache_of(function: Callable[..., Any]) -> _Cache | None:
    try:
        return _Cache(function)
    except RuntimeError:  # "no locator available"
        pass
    folder = _own_folder()
    if folder is None:
        return None
    before, numba.config.CACHE_DIR = numba.config.CACHE_DIR, str(folder)
    try:
        return _Cache(function)
    except RuntimeError as error:
        _warn(f"there is no place for compiled code ({error})")
        return None
    finally:
        numba.config.CACHE_DIR = before  # functions of others keep their places


@lru_cache
def _fingerprint(folder: Path) -> str:
    """Of the text of all modules in a folder."""
    found = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()


@lru_cache(maxsize=1)
def _own_folder() -> Path | None:
    """A folder that nobody else may write, since what is loaded from it runs; None where there is none."""
    try:
        folder = Path(tempfile.gettempdir()) / f"nestquant-numba-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        _warn(f"there is no place for compiled code ({error})")
        return None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        _warn(f"there is no place for compiled code: others can write {folder}")
        return None
    logger.info("compiled code is kept in %s; set NUMBA_CACHE_DIR for another place", folder)
    return folder


@lru_cache(maxsize=1)
def _warn_once() -> list[str]:
    return []


def _warn(cause: str) -> None:
    warned = _warn_once()
    if not warned:
        logger.warning("%s: kernels are compiled again in each run; %s", cause, _HINT)
        warned.append(cause)
