"""The quantizer that transformers calls when a checkpoint's config.json says `quant_method: nestquant`.

It is imported while transformers itself may still be on its way in, so model code is imported when it is used.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from ...base.errors import NestQuantError
from ...base.names import refuse_unknown
from ...modules.layout import QUANT_METHOD
from ...modules.parse_layout import parse_layout
from ...storage.files import read_json
from .config_entries import quantization_config

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from ...pipeline.recipe import Recipe


_SETTINGS = (
    "bits",
    "act_bits",
    "kv_bits",
    "seed",
    "tensor_parallel",
    "embedding_bits",
    "head_bits",
    "layout",
    "recipe",
)


@register_quantization_config(QUANT_METHOD)
class NestQuantConfig(QuantizationConfigMixin):
    """`quantization_config` for `from_pretrained`: quantizes a model while it loads, without calibration.

    transformers makes one, too, of the entry `quantization_config` of a packed checkpoint, with the first two arguments
    and `bits` as a mapping.

    Args:
        layout: what the packed modules are built from, as `modules.layout.Layout.to_dict` gives it.
        recipe: settings of the quantization, for people to read; nothing is computed from it.
        bits: bits of the weights, 2 to 8 in steps of 1/8, or 16 to leave them alone; of a packed checkpoint the nominal
            bits by part, for people to read.
        act_bits, kv_bits: bits of activations, and of keys and values; 16 leaves them alone.
        seed: seed of rotation signs and fits.
        tensor_parallel: number of processes that are to share the matrices, as `pipeline.recipe.Recipe` has it.
        embedding_bits, head_bits: bits of the embedding and of the output head, 4 to 8; 16 leaves them alone.
        unknown: what transformers adds, `quant_method`; any other name is refused.

    Raises:
        NestQuantError: there is no code with so many bits, or a name that is not known.

    Example:
        >>> AutoModelForCausalLM.from_pretrained("org/model", quantization_config=NestQuantConfig(bits=4))
    """

    def __init__(
        self,
        layout: dict[str, Any] | None = None,
        recipe: dict[str, Any] | None = None,
        bits: dict[str, float] | float | None = None,
        act_bits: float = 16,
        kv_bits: float = 16,
        seed: int = 0,
        tensor_parallel: int = 1,
        embedding_bits: float = 16,
        head_bits: float = 16,
        **unknown: Any,
    ) -> None:
        refuse_unknown(set(unknown) - {"quant_method"}, _SETTINGS, "NestQuantConfig", "nothing was loaded")
        self.quant_method = QUANT_METHOD  # type: ignore[assignment]
        self.recipe = recipe or {}
        self.layout = layout or {}
        self.wanted: Recipe | None = None
        self.bits: dict[str, float] = {}
        if isinstance(bits, dict):
            self.bits = bits
        elif bits is not None:
            from ...pipeline.data_free import data_free_recipe

            tables = {"embedding_bits": embedding_bits, "head_bits": head_bits}
            self.wanted = data_free_recipe(bits, act_bits, kv_bits, seed, tensor_parallel, **tables)

    def to_dict(self) -> dict[str, Any]:
        return quantization_config(self.layout, self.recipe, self.bits)


@register_quantizer(QUANT_METHOD)
class NestQuantHfQuantizer(HfQuantizer):
    """Checks the files against the manifest, then builds the packed modules for transformers to load tensors into.

    A model that is not packed is quantized once transformers has loaded it.
    """

    quantization_config: NestQuantConfig
    report: dict[str, Any] | None = None  # of the quantization, for saving the model again

    def update_attn_implementation(self, config: "PretrainedConfig") -> "PretrainedConfig":
        """Refuses a configuration that does not fit manifest and layout: transformers asks this before it builds."""
        from ...checkpoint.expected import packed_model
        from ...checkpoint.manifest import MANIFEST, check_files

        if not self.pre_quantized:
            if self.quantization_config.wanted is None:
                raise NestQuantError(
                    "the NestQuantConfig has no bits", "the model was not quantized", "use NestQuantConfig(bits=4)"
                )
            return config
        folder = Path(config.name_or_path or "")
        if config.name_or_path and (folder / MANIFEST).is_file():
            check_files(folder, tensors=False)
        packed_model(config, parse_layout(self.quantization_config.layout))
        return config

    update_tp_plan = update_attn_implementation  # what earlier versions of transformers 5 ask at this place

    def _process_model_before_weight_loading(self, model: "PreTrainedModel", **kwargs: Any) -> "PreTrainedModel":
        from ...checkpoint.manifest import REPORT
        from ...checkpoint.read import check_checkpoint
        from ...models.other_methods import refuse_quantized
        from ...models.resolve import Source
        from ...models.shards import read_shard
        from ...models.size_limits import meta_model, refuse_size
        from ...modules.attach import attach
        from ...pipeline.examine import examine_model
        from .on_hub import fetch_records

        files = [Path(file) for file in kwargs.get("checkpoint_files") or ()]
        if not self.pre_quantized:
            for folder in {file.parent for file in files}:  # transformers passes over methods that it does not know
                refuse_quantized(Source("folder", str(folder), None, model.config.name_or_path or folder.name))
            assert self.quantization_config.wanted is not None
            examine_model(meta_model(model.config), self.quantization_config.wanted)
            return model
        for folder in {file.parent for file in files}:
            if fetch_records(folder, model.config.name_or_path or ""):
                check_checkpoint(folder)
            if (folder / REPORT).is_file():
                self.report = read_json(folder / REPORT)
        attach(model, parse_layout(self.quantization_config.layout))
        if files:
            entries = {name: entry.shape for file in files for name, entry in read_shard(file).entries.items()}
            refuse_size(model, entries)
        return model

    def _process_model_after_weight_loading(self, model: "PreTrainedModel", **kwargs: Any) -> "PreTrainedModel":
        from ...kernels.dense import use_float32_products
        from .saving import saving_class

        if not self.pre_quantized:
            from ...pipeline.data_free import quantize_loaded

            config = self.quantization_config
            assert config.wanted is not None
            layout, self.report = quantize_loaded(model, config.wanted)
            config.layout, config.recipe, config.bits = layout.to_dict(), self.report["recipe"], self.report["bits"]
        use_float32_products(model)
        kind: Any = type(model)
        model.__class__ = saving_class(kind)
        return model

    def update_weight_conversions(self, weight_conversions: list[Any], model: Any = None) -> list[Any]:
        """No conversions for a packed checkpoint, whose tensors have the names and the form that the model has."""
        return [] if self.pre_quantized else weight_conversions

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True  # adapters on top of frozen packed layers
