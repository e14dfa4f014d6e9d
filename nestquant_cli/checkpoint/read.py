"""Reading a packed checkpoint: the check before loading, and its layout."""

from pathlib import Path
from typing import Any

from ..errors import NestQuantError
from ..files import read_json
from ..modules.layout import QUANT_METHOD, Layout
from .manifest import check_files


def check_checkpoint(folder: Path | str) -> None:
    """Refuses a checkpoint that is incomplete, truncated or altered, or whose config.json is not usable.

    Raises:
        NestQuantError: naming the file and what is wrong with it.
    """
    folder = Path(folder)
    check_files(folder)
    read_layout(folder)


def read_layout(folder: Path) -> Layout:
    """The layout of the packed modules.

    Raises:
        NestQuantError: not a packed checkpoint, or a field is not usable.
    """
    return Layout.from_dict(read_quantization_config(folder).get("layout"))


def read_quantization_config(folder: Path) -> dict[str, Any]:
    """`quantization_config` of config.json.

    Raises:
        NestQuantError: there is none of ours.
    """
    config = read_json(folder / "config.json")
    section = config.get("quantization_config") if isinstance(config, dict) else None
    if not isinstance(section, dict) or section.get("quant_method") != QUANT_METHOD:
        raise NestQuantError(
            f"{folder} is not a packed checkpoint of nestquant", "it was not read", "give a folder that quantize wrote"
        )
    return section
