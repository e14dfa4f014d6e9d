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

from typing import TYPE_CHECKING, Any

from .integrations.transformers.registration import register_with_transformers

if TYPE_CHECKING:
    from .integrations.transformers.quantizer import NestQuantConfig

__all__ = ["NestQuantConfig", "__version__"]
__version__ = "0.1.0"

register_with_transformers()


def __getattr__(name: str) -> Any:
    """NestQuantConfig, whose module imports transformers, on first use."""
    if name == "NestQuantConfig":
        from .integrations.transformers.quantizer import NestQuantConfig

        return NestQuantConfig
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
