"""nestquant: language models at 4 bits with nested E8 lattice codes (NestQuant, arXiv 2502.09720).

Importing this package is cheap and teaches transformers to load packed checkpoints:

    >>> import nestquant_cli
    >>> from transformers import AutoModelForCausalLM
    >>> model = AutoModelForCausalLM.from_pretrained("./model-nestquant-w4a4kv4")

or to quantize one while it loads, without calibration:

    >>> model = AutoModelForCausalLM.from_pretrained(
    ...     "org/model", quantization_config=nestquant_cli.NestQuantConfig(bits=4)
    ... )

The names in `__all__` are the public API, and docs/api.md has an example of each:

    >>> report = nestquant_cli.quantize("org/model", "model-w4", weight_bits=4)
    >>> nestquant_cli.evaluate("model-w4", baseline="org/model").scores.perplexity
"""

import importlib
from typing import TYPE_CHECKING, Any

from .base.errors import NestQuantError
from .base.version import __version__
from .integrations.transformers.registration import register_with_transformers

if TYPE_CHECKING:
    from .api.checkpoints import calibrate, quantize, tune
    from .api.models import evaluate, load
    from .checkpoint.inspect import inspect
    from .checkpoint.verify import verify
    from .integrations.transformers.quantizer import NestQuantConfig
    from .modules.resident import set_resident
    from .pipeline.recipe import Recipe

# The modules of these names import torch or transformers, so each is imported when its name is first used. They are
# named by strings, so that this file, which every file of the package needs, imports none that needs it.
_MODULES = {
    "NestQuantConfig": "integrations.transformers.quantizer",
    "Recipe": "pipeline.recipe",
    "calibrate": "api.checkpoints",
    "evaluate": "api.models",
    "inspect": "checkpoint.inspect",
    "load": "api.models",
    "quantize": "api.checkpoints",
    "set_resident": "modules.resident",
    "tune": "api.checkpoints",
    "verify": "checkpoint.verify",
}

__all__ = [
    "NestQuantConfig",
    "NestQuantError",
    "Recipe",
    "__version__",
    "calibrate",
    "evaluate",
    "inspect",
    "load",
    "quantize",
    "set_resident",
    "tune",
    "verify",
]

register_with_transformers()


def __getattr__(name: str) -> Any:
    """A public name, whose module is imported on first use."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
