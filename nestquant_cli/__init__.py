"""nestquant: language models at 4 bits with nested E8 lattice codes (NestQuant, arXiv 2502.09720).

Importing this package is cheap and teaches transformers to load packed checkpoints:

    >>> import nestquant_cli
    >>> from transformers import AutoModelForCausalLM
    >>> model = AutoModelForCausalLM.from_pretrained("./model-nestquant-w4a4kv4")
"""

from .registration import register_with_transformers

__version__ = "0.1.0"

register_with_transformers()
