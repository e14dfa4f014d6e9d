"""The address that the loader in every packed checkpoint imports from; checkpoints that exist keep it."""

from ..integrations.transformers.auto import NestQuantConfigLoader, NestQuantModelLoader

__all__ = ["NestQuantConfigLoader", "NestQuantModelLoader"]
