"""Weights that another method has quantized: known by config.json before any weight is read, and refused by name.

Two methods are no loss of their own, since models are published in no other form: FP8 with block scales and MXFP4. They
are de-quantized by a written rule (`models.dequantize`) and then quantized like any other model.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.errors import NestQuantError
from ..storage.files import read_json
from .weight_set import NOT_LOADED

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from .resolve import Source

_ENTRIES = ("quantization_config", "compression_config")  # where config.json says how weights are stored
_MLX = "quantization"  # the entry of MLX, which has no quant_method
# Files with the same, which programs wrote before config.json had an entry for it.
_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq", "hf_quant_config.json": "modelopt"}
_LABELS = {
    "gptq": "GPTQ",
    "awq": "AWQ",
    "hqq": "HQQ",
    "aqlm": "AQLM",
    "exl2": "EXL2",
    "exl3": "EXL3",
    "fp8": "FP8",
    "fbgemm_fp8": "FBGEMM FP8",
    "mxfp8": "MXFP8",
    "mxfp4": "MXFP4",
    "nvfp4": "NVFP4",
    "mlx": "MLX",
    "modelopt": "ModelOpt",
    "nestquant": "nestquant",
}
_ORIGINAL = "give the model that it was made from, with weights in 16 or 32 bits"
_DEQUANTIZED = ("fp8", "mxfp4")


@dataclass(frozen=True)
class Method:
    """A method by which the weights of a model are stored.

    Attributes:
        name: what config.json calls it.
        settings: its entry in config.json.
    """

    name: str
    settings: Mapping[str, Any]

    @property
    def label(self) -> str:
        """What people call it, such as "GPTQ"."""
        return _LABELS.get(self.name.lower(), self.name)

    @property
    def dequantized(self) -> bool:
        """Whether its weights are de-quantized by a written rule: FP8 and MXFP4, but for experts in 4-bit floats that
        FP8 checkpoints may have."""
        return self.name in _DEQUANTIZED and self.settings.get("expert_dtype", "fp8") == "fp8"


def method_of(source: "Source") -> Method | None:
    """The method by which the weights of a model folder are stored; None for plain weights and for GGUF files."""
    folder = Path(source.path)
    if source.gguf_file or not (folder / "config.json").is_file():
        return None
    found = _declared(read_json(folder / "config.json"))
    if found is None:
        name = next((method for file, method in _FILES.items() if (folder / file).is_file()), None)
        found = None if name is None else Method(name, {})
    return found


def forget_method(config: "PretrainedConfig") -> None:
    """Makes a configuration, in place, that of the model whose weights were de-quantized."""
    for part in (config, *(getattr(config, name, None) for name in config.sub_configs)):
        if part is not None:
            vars(part).pop("quantization_config", None)
    if config.dtype is None:
        config.dtype = "bfloat16"  # of the models that are published in these forms


def refuse_quantized(source: "Source") -> None:
    """Raises NestQuantError where another method has quantized the weights and no rule turns them back."""
    method = method_of(source)
    if method is not None and not method.dequantized:
        raise NestQuantError(
            f"the weights of {source.name} are quantized already, by {method.label}",
            "nothing was quantized",
            _ORIGINAL,
        )


def refuse_unreadable(source: "Source") -> None:
    """Raises NestQuantError where transformers has no reader for the method: it would run with random numbers."""
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING as READERS

    method = method_of(source)
    if method is not None and method.name not in (*READERS, "bitsandbytes"):
        raise NestQuantError(
            f"the weights of {source.name} are stored by {method.label}, which transformers does not read",
            NOT_LOADED,
            _ORIGINAL,
        )


def _declared(config: Any) -> Method | None:
    """What a parsed config.json says, at its top or in the part of the language model."""
    if not isinstance(config, dict):
        return None
    for place in (config, *(value for key, value in config.items() if key.endswith("_config"))):
        for key in _ENTRIES if isinstance(place, dict) else ():
            if isinstance(entry := place.get(key), dict) and entry:
                return Method(_name(entry, config), entry)
    entry = config.get(_MLX)
    return Method(_name(entry, config), entry) if isinstance(entry, dict) and entry else None


def _name(entry: dict[str, Any], config: dict[str, Any]) -> str:
    name = entry.get("quant_method")
    if isinstance(name, str) and name:
        return name
    if entry.get("load_in_4bit") or entry.get("load_in_8bit"):
        return "bitsandbytes"
    return "mlx" if _MLX in config else "a method that its config.json does not name"
