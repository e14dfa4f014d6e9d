"""What is needed to repeat a measurement: versions, model, commit, hashes and device, as JSON values."""

import importlib.metadata
import platform
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..base.device import device_name
from ..base.version import __version__
from ..models.describe import describe
from ..models.source import Source, fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PACKAGES = ("torch", "transformers")


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python, this package, torch, transformers and other installed `packages`, by name."""
    installed = {package: importlib.metadata.version(package) for package in (*PACKAGES, *packages)}
    return {"python": platform.python_version(), "nestquant_cli": __version__, **installed}


def model_protocol(source: Source, model: "PreTrainedModel") -> dict[str, Any]:
    """Name, fingerprint, dtype, attention implementation and device of a loaded model; its commit if it is of the Hub.

    Args:
        source: where the model comes from.
        model: the loaded model.
    """
    dtype = str(model.dtype).removeprefix("torch.")
    return {
        "name": source.name,
        "description": describe(source, dtype),
        "kind": source.kind,
        "revision": source.hub and source.hub.revision,
        "commit": source.hub and source.hub.sha,
        "sha256": fingerprint(source),
        "dtype": dtype,
        "attention": str(model.config._attn_implementation),
        "device": device_name(model.device),
    }


def windows_in_words(protocol: Mapping[str, Any]) -> str:
    """Number of scored windows in words: "8 of 141", or "the first 8" where the text was not read to its end.

    Args:
        protocol: protocol of a perplexity measurement, with "windows" and "windows_in_text".
    """
    whole = protocol["windows_in_text"]
    return f"the first {protocol['windows']}" if whole is None else f"{protocol['windows']} of {whole}"
