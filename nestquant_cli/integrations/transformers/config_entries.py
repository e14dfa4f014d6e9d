"""The entries of config.json by which transformers knows a packed checkpoint, and the file that one of them names.

`quantization_config` says that the quantizer of this package is to be called. `auto_map` leads
`from_pretrained(…, trust_remote_code=True)` to the file `LOADER` in the folder, a copy of `modeling_nestquant.py` that
is the same in every checkpoint. Any other code in a folder is none of ours.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...models.auto_class import GENERATE_TEXT
from ...modules.layout import QUANT_METHOD
from ...storage.files import write_text

LOADER = "modeling_nestquant.py"
_MODEL = "modeling_nestquant.NestQuantModelLoader"
_CONFIG = {"AutoConfig": "modeling_nestquant.NestQuantConfigLoader"}
_ALL = _CONFIG | dict.fromkeys(GENERATE_TEXT, _MODEL)


def auto_map(names: Iterable[str]) -> dict[str, str]:
    """The entry `auto_map`: the Auto classes `names`, which know the model, lead to the one loader of models."""
    return _CONFIG | dict.fromkeys(names, _MODEL)


def quantization_config(layout: dict[str, Any], recipe: dict[str, Any], bits: dict[str, float]) -> dict[str, Any]:
    """The entry `quantization_config`, JSON-ready.

    Args:
        layout: what modules are built from, as `modules.layout.Layout.to_dict` gives it.
        recipe: settings of the quantization, for people to read.
        bits: nominal bits of weights, activations, keys and values, for people to read.
    """
    return {"quant_method": QUANT_METHOD, "bits": bits, "recipe": recipe, "layout": layout}


def loader_text() -> str:
    """The one text that the file LOADER of a checkpoint may have."""
    return (Path(__file__).parent / LOADER).read_text(encoding="utf-8")


def write_loader(folder: Path) -> None:
    """Puts the file LOADER into a checkpoint."""
    write_text(folder / LOADER, loader_text())


def foreign_code(folder: Path, names: list[str]) -> list[str]:
    """Python files that this package did not write.

    Args:
        folder: checkpoint folder.
        names: names of the files in it.
    """
    code = [name for name in names if name.endswith(".py")]
    return [name for name in code if name != LOADER or _text_of(folder / name) != loader_text()]


def map_problem(config: Any) -> str | None:
    """What is wrong with the `auto_map` of a parsed config.json, if it has one; None if nothing."""
    entries = config.get("auto_map", {}) if isinstance(config, dict) else {}
    if isinstance(entries, dict) and all(_ALL.get(name) == target for name, target in entries.items()):
        return None
    return "has an auto_map that leads to code that nestquant did not write"


def _text_of(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
