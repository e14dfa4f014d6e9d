"""The quantizer that transformers calls when a checkpoint's config.json says `quant_method: nestquant`.

It is imported while transformers itself may still be on its way in, so model code is imported when it is used.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from ..modules.layout import QUANT_METHOD, Layout

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


@register_quantization_config(QUANT_METHOD)
class NestQuantConfig(QuantizationConfigMixin):
    """`quantization_config` of a packed checkpoint: the layout of the packed modules and the recipe they were made by.

    Args:
        layout: as in `modules.layout`, JSON-ready.
        recipe: settings of the quantization, for people to read; nothing is computed from it.
        bits: nominal bits of weights, activations and keys and values, for people to read.
    """

    def __init__(
        self,
        layout: dict[str, Any] | None = None,
        recipe: dict[str, Any] | None = None,
        bits: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        self.quant_method = QUANT_METHOD  # type: ignore[assignment]
        self.bits = bits or {}
        self.recipe = recipe or {}
        self.layout = layout or {}

    def to_dict(self) -> dict[str, Any]:
        return {
            "quant_method": QUANT_METHOD,
            "bits": self.bits,
            "recipe": self.recipe,
            "layout": self.layout,
        }


@register_quantizer(QUANT_METHOD)
class NestQuantHfQuantizer(HfQuantizer):
    """Checks the files against the manifest, then builds the packed modules for transformers to load tensors into."""

    requires_calibration = True
    quantization_config: NestQuantConfig

    def update_attn_implementation(self, config: "PretrainedConfig") -> "PretrainedConfig":
        """Refuses a configuration that does not fit manifest and layout: transformers asks this before it builds."""
        from .expected import packed_model
        from .manifest import MANIFEST, check_files

        folder = Path(config.name_or_path or "")
        if config.name_or_path and (folder / MANIFEST).is_file():
            check_files(folder, tensors=False)
        packed_model(config, Layout.from_dict(self.quantization_config.layout))
        return config

    update_tp_plan = update_attn_implementation  # what earlier versions of transformers 5 ask at this place

    def _process_model_before_weight_loading(self, model: "PreTrainedModel", **kwargs: Any) -> "PreTrainedModel":
        from ..models.limits import refuse_size
        from ..models.shards import read_shard
        from ..modules.attach import attach
        from .manifest import MANIFEST
        from .read import check_checkpoint

        files = [Path(file) for file in kwargs.get("checkpoint_files") or ()]
        for folder in {file.parent for file in files}:
            if (folder / MANIFEST).is_file():  # save_pretrained of a loaded model writes none
                check_checkpoint(folder)
        attach(model, Layout.from_dict(self.quantization_config.layout))
        if files:
            entries = {name: entry.shape for file in files for name, entry in read_shard(file).entries.items()}
            refuse_size(model, entries)
        return model

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False
