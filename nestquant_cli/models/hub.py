"""The Hugging Face Hub as one more place for files: is it reachable, and a model's files as a local folder."""

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import NestQuantError

PROBE_SECONDS = 5.0  # the client's own retries take 23 s before they give up, with nothing to see meanwhile
SMALL_FILES = (".json", ".txt", ".model", ".jinja")  # configuration and tokenizer


@functools.lru_cache(maxsize=1)
def reachable() -> bool:
    """True where the Hub answers within five seconds and offline mode is not asked for. Asked once a process."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=PROBE_SECONDS)
    except Exception:  # the transport library, and so its error types, differ between versions of the client
        return False
    return True


@contextlib.contextmanager
def cache_only_when_unreachable() -> Iterator[None]:
    """Within it, the Hub's client and `datasets` use their caches at once where the Hub cannot be reached."""
    import datasets.config
    from huggingface_hub import constants

    places: list[Any] = [place for place in (constants, datasets.config) if hasattr(place, "HF_HUB_OFFLINE")]
    before = [place.HF_HUB_OFFLINE for place in places]
    if not reachable():
        for place in places:
            place.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value


def snapshot(name: str) -> Path:
    """The local folder with a Hub model's configuration, tokenizer and weights, downloaded where they are not yet.

    Of the weights only safetensors files are downloaded.

    Raises:
        NestQuantError: an unknown id, a gated model without access, or no connection and nothing in the cache.
    """
    from huggingface_hub import errors, snapshot_download

    if not reachable():
        return _cached(name)
    try:
        return Path(snapshot_download(name, allow_patterns=_wanted_files(name)))
    except errors.GatedRepoError as error:
        raise NestQuantError(
            f"'{name}' is a gated model on the Hugging Face Hub",
            "it was not downloaded",
            "ask for access on its page, then run 'hf auth login'",
        ) from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise NestQuantError(
            f"'{name}' is neither a folder here nor a model on the Hugging Face Hub",
            "no model was loaded",
            "check the spelling, or run 'hf auth login' if the model is private",
        ) from error
    except errors.HfHubHTTPError as error:
        raise NestQuantError(
            f"the Hugging Face Hub refused '{name}' ({str(error).splitlines()[0]})", "no model was loaded", "try again"
        ) from error


def _wanted_files(name: str) -> list[str]:
    from huggingface_hub import HfApi

    files = [file for file in HfApi().list_repo_files(name) if "/" not in file]
    weights = [file for file in files if file.endswith(".safetensors")]
    if not weights and any(file.endswith(".bin") for file in files):
        raise NestQuantError(
            f"'{name}' has its weights only in .bin files, which are pickles",
            "no model was loaded",
            "use a model with safetensors files: no pickle is ever read",
        )
    return [file for file in files if file.endswith(SMALL_FILES)] + weights


def _cached(name: str) -> Path:
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (errors.LocalEntryNotFoundError, errors.HFValidationError) as error:
        raise NestQuantError(
            f"there is no folder '{name}', and the Hugging Face Hub cannot be reached to look for a model of that id",
            "no model was loaded",
            "check the spelling or the connection, or give a local model folder or a .gguf file",
        ) from error
