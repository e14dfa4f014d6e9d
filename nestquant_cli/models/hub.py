"""Models on the Hugging Face Hub: a commit is looked up once, and every file is of that commit."""

import contextlib
import functools
import glob
import logging
import urllib.request
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..base.errors import NestQuantError, first_line
from ..base.progress import on_terminal
from ..storage.files import write_text

PATIENCE = 5.0  # seconds for the first answer; without it the client waits for ever where packets are swallowed
NOT_LOADED = "no model was loaded"

logger = logging.getLogger("nestquant")


@dataclass(frozen=True)
class Commit:
    """One state of a model repository on the Hub.

    Attributes:
        repo: id of the repository.
        revision: the branch, tag or commit that was asked for; None for the default branch.
        sha: hash of the commit, 40 hex digits.
        files: names of the files; None where the Hub gave no answer and the client's cache has the commit.
    """

    repo: str
    revision: str | None
    sha: str
    files: tuple[str, ...] | None


def find_commit(repo: str, revision: str | None = None) -> Commit:
    """Asks the Hub once what a revision is; where it cannot say, the client's cache does.

    Raises:
        NestQuantError: an unknown id or revision, or no answer and nothing in the cache.
    """
    from huggingface_hub import HfApi, errors

    try:
        info = HfApi().model_info(repo, revision=revision, timeout=PATIENCE)
    except errors.RevisionNotFoundError as error:
        raise _refusal(repo, revision, error) from error
    except Exception as error:  # the transport library, and so its error types, differ between versions of the client
        cached = _cached(repo, revision)
        if cached is None:
            raise _refusal(repo, revision, error) from error
        if not isinstance(error, errors.OfflineModeIsEnabled):
            logger.warning(
                "the Hugging Face Hub gave no answer (%s): %s is taken from the cache, commit %s",
                reason_of(error),
                repo,
                cached.name,
            )
        return Commit(repo, revision, cached.name, None)
    return Commit(repo, revision, str(info.sha), tuple(file.rfilename for file in info.siblings or ()))


def download(commit: Commit, names: Collection[str]) -> Path:
    """The local folder of a commit, with the files `names` in it; those that are there are not fetched again.

    Raises:
        NestQuantError: a gated model without access, a refusal, or a download that broke off.
    """
    from huggingface_hub import snapshot_download

    if commit.files is None:
        return _from_cache(commit, names)
    patterns = [glob.escape(name) for name in names]
    try:
        with _bars():
            folder = Path(snapshot_download(commit.repo, revision=commit.sha, allow_patterns=patterns))
    except Exception as error:  # the error types differ between versions of the client
        raise _refusal(commit.repo, commit.revision, error, begun=True) from error
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:  # the client takes what its cache has where the connection is lost
        raise _broken_off(commit.repo, f"{missing[0]} is missing")
    _remember(commit, folder)
    return folder


@functools.lru_cache(maxsize=1)
def unreachable() -> str | None:
    """Why the Hub cannot be reached, None where it answers within five seconds. Asked once a process."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        get_session().head(constants.ENDPOINT, timeout=PATIENCE)
    except Exception as error:  # the error types differ between versions of the client
        return reason_of(error)
    return None


@contextlib.contextmanager
def cache_only_when_unreachable() -> Iterator[None]:
    """Within it `datasets` uses its cache at once where the Hub cannot be reached; by itself it takes 24 s to do so."""
    import datasets.config
    from huggingface_hub import constants

    modules: list[Any] = [module for module in (constants, datasets.config) if hasattr(module, "HF_HUB_OFFLINE")]
    before = [module.HF_HUB_OFFLINE for module in modules]
    if unreachable() is not None:
        for module in modules:
            module.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = value


def reason_of(error: BaseException) -> str:
    """What an error of the Hub's client comes down to, in one line; a proxy that is in between is named."""
    from huggingface_hub import constants

    text = first_line(error)
    if getattr(error, "response", None) is not None:
        return text  # the Hub itself has spoken
    address = urlsplit(constants.ENDPOINT)
    proxies = urllib.request.getproxies()
    proxy = proxies.get(address.scheme) or proxies.get("all")
    if proxy is None or urllib.request.proxy_bypass(address.hostname or ""):
        return text
    return f"{text}, by way of the proxy {urlsplit(proxy).hostname}"


def _cached(repo: str, revision: str | None) -> Path | None:
    """The folder in the client's cache, if it has a configuration of that revision."""
    from huggingface_hub import errors, snapshot_download

    try:
        folder = Path(snapshot_download(repo, revision=revision, local_files_only=True, allow_patterns=["config.json"]))
    except (errors.LocalEntryNotFoundError, errors.HFValidationError):
        return None
    return folder if (folder / "config.json").is_file() else None


def _from_cache(commit: Commit, names: Collection[str]) -> Path:
    folder = _cached(commit.repo, commit.sha)
    missing = ["config.json"] if folder is None else [name for name in names if not (folder / name).is_file()]
    if folder is None or missing:
        raise NestQuantError(
            f"the cache has only a part of '{commit.repo}', {missing[0]} is missing, and the Hugging Face Hub gave no "
            "answer",
            NOT_LOADED,
            "run the command again when there is a connection",
        )
    return folder


def _remember(commit: Commit, folder: Path) -> None:
    """Notes in the client's cache what the revision is, by which it is found there without a connection."""
    from huggingface_hub import constants

    revision = commit.revision or constants.DEFAULT_REVISION
    if revision != commit.sha:
        with contextlib.suppress(NestQuantError):  # of a cache that others fill and this user only reads
            write_text(folder.parents[1] / "refs" / revision, commit.sha)


@contextlib.contextmanager
def _bars() -> Iterator[None]:
    """Within it the client draws bars only where this program draws its own."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled() or (logger.isEnabledFor(logging.INFO) and on_terminal()):
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _refusal(repo: str, revision: str | None, error: Exception, begun: bool = False) -> NestQuantError:
    """The one line for what the client raised, before or after a download has `begun`."""
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    login = "run 'hf auth login'"
    if isinstance(error, errors.GatedRepoError):
        what = f"'{repo}' is a gated model on the Hugging Face Hub"
        return NestQuantError(what, "it was not downloaded", f"ask for access on its page, then {login}")
    if isinstance(error, errors.RevisionNotFoundError):
        what = f"'{repo}' has no revision '{revision}' on the Hugging Face Hub"
        return NestQuantError(what, NOT_LOADED, "give a branch, a tag or a commit that its page shows")
    if isinstance(error, errors.RepositoryNotFoundError | errors.HFValidationError):
        what = f"'{repo}' is neither a folder here nor a model on the Hugging Face Hub"
        return NestQuantError(what, NOT_LOADED, f"check the spelling, or {login} if the model is private")
    if status == 429:
        what = f"the Hugging Face Hub takes no more requests from here for now, '{repo}' is one too many (429)"
        return NestQuantError(what, NOT_LOADED, f"run the command again in some minutes, or {login}: it allows more")
    if status in (401, 403):
        what = f"the Hugging Face Hub refused '{repo}' ({reason_of(error)})"
        return NestQuantError(what, NOT_LOADED, f"{login} with a token that may read it")
    if status is not None:
        what = f"the Hugging Face Hub could not give '{repo}' ({reason_of(error)})"
        return NestQuantError(what, NOT_LOADED, "run the command again later")
    if begun:
        return _broken_off(repo, reason_of(error))
    reason = reason_of(error)
    remedy = "check the spelling or the connection, or give a local model folder or a .gguf file"
    if "SSL" in reason or "CERTIFICATE" in reason.upper():
        remedy = "name the certificates of your network in SSL_CERT_FILE, or give a local model folder or a .gguf file"
    return NestQuantError(
        f"there is no folder '{repo}', and the Hugging Face Hub cannot be reached to look for a model of that id "
        f"({reason})",
        NOT_LOADED,
        remedy,
    )


def _broken_off(repo: str, reason: str) -> NestQuantError:
    return NestQuantError(
        f"the download of '{repo}' broke off ({reason})",
        "no model was loaded; files that arrived whole are kept",
        "run the same command again, it fetches the others",
    )
