"""The entry `quantization_config` of a packed checkpoint as vLLM's QuantizationConfig: which layer gets which method.

vLLM pickles it to its processes, so it holds what config.json says and builds the rest when a model asks.
"""

from pathlib import Path
from typing import Any

import torch
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig, QuantizeMethodBase

from ...checkpoint.manifest import MANIFEST
from ...checkpoint.read import check_checkpoint
from .expert_names import patterns
from .model_class import current_class, fused_layers, refuse_rearranged_rows
from .state import ModelState

METHOD = "nestquant"


class CheckpointConfig(QuantizationConfig):
    """The configuration of one packed checkpoint.

    Args:
        value: `quantization_config` of config.json.

    Attributes:
        value: the same.
        state: what the layers of the model share in this process; made when it is first asked for.
    """

    def __init__(self, value: dict[str, Any]) -> None:
        super().__init__()
        self.value = value
        self._state: ModelState | None = None
        self._model_types: list[str] = []
        _watch_loading()

    @property
    def state(self) -> ModelState:
        if self._state is None:
            self._state = ModelState(self.value.get("layout"), self._model_types)
        return self._state

    def get_name(self) -> str:
        return METHOD

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16, torch.float32]

    @classmethod
    def get_min_capability(cls) -> int:
        return 80  # bfloat16

    @staticmethod
    def get_config_filenames() -> list[str]:
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "CheckpointConfig":
        return cls(config)

    def maybe_update_config(self, model_name: str, hf_config: Any = None, revision: str | None = None) -> None:
        """Refuses a checkpoint that cannot be used, before vLLM starts its processes.

        The files of a folder are compared with its manifest, as transformers' quantizer does. Those of a Hub id may not
        be there yet, and are not compared.

        Args:
            model_name: folder or Hub id.
            hf_config, revision: as vLLM gives them; not needed.

        Raises:
            NestQuantError: naming what is missing, altered or unknown.
        """
        ModelState(self.value.get("layout"))
        self._model_types = [] if hf_config is None else [hf_config.model_type, hf_config.get_text_config().model_type]
        if (Path(model_name) / MANIFEST).is_file():
            check_checkpoint(Path(model_name))

    def apply_vllm_mapper(self, hf_to_vllm_mapper: Any) -> None:
        self.state.names.rename(hf_to_vllm_mapper)

    def get_checkpoint_weight_mapper(self) -> Any:
        """Besides the model's own, how the tensors of the checkpoint come to layers that have others' names.

        vLLM asks when all layers are built and nothing is loaded yet.
        """
        from vllm.model_executor.models.utils import WeightsMapper

        from .linear import refuse_untaken

        refuse_untaken(self.state)
        own = WeightsMapper(
            orig_to_new_renaming=self.state.hub.renamings, orig_to_new_regex=patterns(self.state.experts)
        )
        return super().get_checkpoint_weight_mapper() | own

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> QuantizeMethodBase | None:
        """The method of a layer: coded Linears, experts, and attention; None leaves a layer to vLLM."""
        from vllm.model_executor.layers.attention import Attention, MLAAttention
        from vllm.model_executor.layers.fused_moe import RoutedExperts
        from vllm.model_executor.layers.linear import LinearBase

        self.state.place = prefix
        if isinstance(layer, LinearBase):
            return self._of_linear(layer, prefix)
        if isinstance(layer, RoutedExperts):
            from .experts import expert_method

            return expert_method(self, layer, prefix)
        if isinstance(layer, Attention | MLAAttention):
            from .cache import attention_method
            from .linear import take_apart

            if isinstance(layer, MLAAttention):
                take_apart(layer.kv_b_proj)
            return attention_method(self, layer, prefix)
        return None

    def _of_linear(self, layer: Any, prefix: str) -> QuantizeMethodBase:
        from vllm.model_executor.layers.linear import RowParallelLinear

        from .linear import CodedLinearMethod, PlainLinearMethod

        model_class = current_class()
        fused = {} if model_class is None else fused_layers(model_class)
        names = self.state.names.of(prefix, fused | self.packed_modules_mapping)
        if not names:
            return PlainLinearMethod(self.state)
        refuse_rearranged_rows(model_class)
        self.state.names.take(names, layer)
        if isinstance(layer, RowParallelLinear) and layer.tp_size > 1:
            from .row_parallel import row_parallel_method

            return row_parallel_method(self, layer, prefix, names)
        return CodedLinearMethod(self.state, names)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_state": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        _watch_loading()


def _watch_loading() -> None:
    """Where a configuration is, its model may be loaded."""
    from .loader import register

    register()
