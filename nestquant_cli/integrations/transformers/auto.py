"""What a checkpoint's `auto_map` leads to: the classes that transformers has anyway, with our quantizer registered.

The file that the map names is a copy of `modeling_nestquant.py`, the same in every checkpoint. It imports this module,
and by that the package, whose import registers the quantizer.
"""

from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM

from ...storage.files import write_text

LOADER = "modeling_nestquant.py"
AUTO_MAP = {
    "AutoConfig": "modeling_nestquant.NestQuantConfigLoader",
    "AutoModelForCausalLM": "modeling_nestquant.NestQuantModelLoader",
}


class _Loader:
    """Hands on to an Auto class of transformers, which needs no code of the checkpoint then."""

    auto: Any

    @classmethod
    def from_pretrained(cls, name: Any, *arguments: Any, **settings: Any) -> Any:
        """What the Auto class loads."""
        return cls.auto.from_pretrained(name, *arguments, **settings | {"trust_remote_code": False})

    @classmethod
    def _from_config(cls, config: Any, **settings: Any) -> Any:
        return cls.auto.from_config(config, **settings | {"trust_remote_code": False})

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "") -> None:
        """Nothing: a model that is saved again has a class of transformers."""


class NestQuantConfigLoader(_Loader):
    """Loads the configuration."""

    auto = AutoConfig


class NestQuantModelLoader(_Loader):
    """Loads the model."""

    auto = AutoModelForCausalLM


def loader_text() -> str:
    """The one text that the file LOADER of a checkpoint may have."""
    return (Path(__file__).parent / LOADER).read_text(encoding="utf-8")


def write_loader(folder: Path) -> None:
    """Puts the file LOADER into a checkpoint."""
    write_text(folder / LOADER, loader_text())


def foreign_code(folder: Path, names: list[str]) -> list[str]:
    """Python files of a checkpoint that are none of ours."""
    code = [name for name in names if name.endswith(".py")]
    return [name for name in code if name != LOADER or _text_of(folder / name) != loader_text()]


def map_problem(config: Any) -> str | None:
    """What is wrong with the `auto_map` of a parsed config.json, if it has one; None if nothing."""
    places = config.get("auto_map", {}) if isinstance(config, dict) else {}
    if isinstance(places, dict) and all(AUTO_MAP.get(name) == place for name, place in places.items()):
        return None
    return "has an auto_map that leads to code that nestquant did not write"


def _text_of(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
