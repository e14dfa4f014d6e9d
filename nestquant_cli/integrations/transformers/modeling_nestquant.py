"""Loads this checkpoint through the package nestquant, which has all the code; transformers asks this file for it.

Copied into every packed checkpoint, for `from_pretrained(…, trust_remote_code=True)` without `import nestquant_cli`.
"""

try:
    from nestquant_cli.checkpoint.auto import NestQuantConfigLoader, NestQuantModelLoader
except ImportError as error:
    raise ImportError("this checkpoint is packed by nestquant: pip install nestquant") from error

__all__ = ["NestQuantConfigLoader", "NestQuantModelLoader"]
