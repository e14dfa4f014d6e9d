"""nestquant: language models at 4 bits with nested E8 lattice codes (NestQuant, arXiv 2502.09720).

Importing this package is cheap and teaches transformers to load packed checkpoints:

    >>> import nestquant_cli
    >>> from transformers import AutoModelForCausalLM
    >>> model = AutoModelForCausalLM.from_pretrained("./model-nestquant-w4a4kv4")

or to quantize one while it loads, without calibration:

    >>> model = AutoModelForCausalLM.from_pretrained(
    ...     "org/model", quantization_config=nestquant_cli.NestQuantConfig(bits=4)
    ... )
"""

import importlib
from typing import TYPE_CHECKING, Any

from .base.version import __version__
from .integrations.transformers.registration import register_with_transformers

if TYPE_CHECKING:
    from .integrations.transformers.quantizer import NestQuantConfig

# The modules of these names import torch or transformers, so each is imported when its name is first used. They are
# named by strings: this file imports nothing that imports it.
_MODULES = {
    "NestQuantConfig": "integrations.transformers.quantizer",
}

__all__ = ["NestQuantConfig", "__version__"]

register_with_transformers()


def __getattr__(name: str) -> Any:
    """A public name, whose module is imported on first use."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value
