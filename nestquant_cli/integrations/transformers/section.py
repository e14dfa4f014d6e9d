"""The entry `quantization_config` of config.json, by which transformers knows a packed checkpoint."""

from typing import Any

from ...modules.layout import QUANT_METHOD


def config_section(layout: dict[str, Any], recipe: dict[str, Any], bits: dict[str, float]) -> dict[str, Any]:
    """JSON-ready: the layout that modules are built from; recipe and nominal bits, for people to read."""
    return {"quant_method": QUANT_METHOD, "bits": bits, "recipe": recipe, "layout": layout}
