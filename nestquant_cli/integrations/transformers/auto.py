"""The classes that a checkpoint's `auto_map` names. They hand over to transformers, which has the quantizer by then.

Checkpoints import them from `checkpoint.auto`, an address that every one of them has in its loader.
"""

from typing import Any

from transformers import AutoConfig

from ...models.auto_class import auto_class


class _Loader:
    """Hands over to an Auto class of transformers, which then needs no code of the checkpoint."""

    @classmethod
    def _auto(cls, config: Any) -> Any:
        raise NotImplementedError

    @classmethod
    def from_pretrained(cls, name: Any, *arguments: Any, **settings: Any) -> Any:
        """What the Auto class loads, with the arguments of its `from_pretrained`."""
        auto = cls._auto(settings.get("config"))
        return auto.from_pretrained(name, *arguments, **settings | {"trust_remote_code": False})

    @classmethod
    def _from_config(cls, config: Any, **settings: Any) -> Any:
        return cls._auto(config).from_config(config, **settings | {"trust_remote_code": False})

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "") -> None:
        """Does nothing: a model that is saved again has a class of transformers."""


class NestQuantConfigLoader(_Loader):
    """Loads the configuration of a packed checkpoint."""

    @classmethod
    def _auto(cls, config: Any) -> Any:
        return AutoConfig


class NestQuantModelLoader(_Loader):
    """Loads a packed model, as the class that its configuration names, by whichever Auto class it is asked for."""

    @classmethod
    def _auto(cls, config: Any) -> Any:
        return auto_class(config)
