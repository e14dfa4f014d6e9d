"""A packed checkpoint that transformers loads by its Hub id: its records are fetched as well, so that it is checked."""

import glob
import logging
from collections.abc import Collection
from pathlib import Path

from ...checkpoint.manifest import MANIFEST, read_manifest
from ...models.hub import reason_of

logger = logging.getLogger("nestquant")


def fetch_records(folder: Path, repo: str) -> bool:
    """Whether a folder has a manifest and all that it lists; in the cache of the Hub's client they are fetched first.

    transformers downloads only what it reads. The rest comes from the same commit. Where it cannot be fetched, a
    warning says that no hashes are compared.

    Args:
        folder: checkpoint folder, as transformers found it.
        repo: what transformers was given: the Hub id, if the folder lies in the client's cache.
    """
    if folder.parent.name != "snapshots" or Path(repo).is_dir():
        return (folder / MANIFEST).is_file()
    try:
        _fetch(folder, repo, [MANIFEST])
        if (folder / MANIFEST).is_file():
            _fetch(folder, repo, list(read_manifest(folder)["files"]))
            return True
        reason = f"it has no {MANIFEST}"
    except Exception as error:  # the transport library, and so its error types, differ between versions of the client
        reason = reason_of(error)
    logger.warning("the files of %s are loaded without comparing their hashes: %s", repo, reason)
    return False


def _fetch(folder: Path, repo: str, names: Collection[str]) -> None:
    """Downloads files that are missing from a folder ROOT/models--…/snapshots/COMMIT into it."""
    from huggingface_hub import snapshot_download

    if not all((folder / name).is_file() for name in names):
        patterns = [glob.escape(name) for name in names]
        snapshot_download(repo, revision=folder.name, cache_dir=folder.parents[2], allow_patterns=patterns)
