"""vLLM's own loader of models, which ends in one line where vLLM's class of a model is none that the plugin can follow.

A class may build Linears that never ask for a method, look for attributes that coded layers do not have, or pass over
tensors whose names it does not know. What it does is known only when it is done, so the whole is watched.
"""

import logging
from collections.abc import Generator
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

from ...base.errors import NestQuantError
from .refusals import not_followed
from .state import ModelState

FORMATS = "auto", "hf", "safetensors"  # of --load-format, those that read a folder of safetensors files
_OTHERS = NestQuantError, OSError, MemoryError, torch.OutOfMemoryError  # these say by themselves what is wrong


class FollowingLoader(DefaultModelLoader):
    """Loads packed checkpoints as vLLM loads any other, and says where that ended. Other models are vLLM's alone."""

    enable_weights_track: bool | None

    def __init__(self, load_config: Any) -> None:
        super().__init__(load_config)
        self._state: ModelState | None = None

    def load_model(self, vllm_config: Any, model_config: Any, prefix: str = "") -> nn.Module:
        """The model, built and loaded.

        Raises:
            NestQuantError: naming the layer or the tensor where vLLM stopped.
        """
        state = getattr(vllm_config.quant_config, "state", None)
        if not isinstance(state, ModelState):
            loaded: nn.Module = super().load_model(vllm_config, model_config, prefix)
            return loaded
        self._state = state
        if self.enable_weights_track is None:
            self.enable_weights_track = True  # vLLM looks after those of 16-bit checkpoints only
        try:
            loaded = super().load_model(vllm_config, model_config, prefix)
            return loaded
        except _OTHERS:
            raise
        except Exception as error:
            raise not_followed(state.place, error) from error

    def load_weights(self, model: nn.Module, model_config: Any) -> None:
        """Loads all tensors, once each coded matrix is known to be in a layer."""
        from .linear import refuse_untaken

        if self._state is not None:
            refuse_untaken(self._state)
        super().load_weights(model, model_config)

    def track_weights_loading(self, model: nn.Module, loaded_weights: set[str] | None, quantized: bool = False) -> None:
        """Looks for parameters that were not loaded as vLLM does for 16-bit checkpoints: not inside coded layers.

        Those look after their own, whose names `loaded_weights` need not have.
        """
        super().track_weights_loading(model, loaded_weights, quantized and self._state is None)

    def get_all_weights(self, model_config: Any, model: nn.Module) -> Generator[tuple[str, Tensor], None, None]:
        """The tensors of the checkpoint by name, one after the other."""
        for name, tensor in super().get_all_weights(model_config, model):
            if self._state is not None:
                self._state.place = name
            yield name, tensor


def register() -> None:
    """Makes vLLM load models by `FollowingLoader` in this process. vLLM would warn that it has a loader already."""
    log = logging.getLogger(register_model_loader.__module__)
    log.disabled, before = True, log.disabled
    try:
        for name in FORMATS:
            register_model_loader(name)(FollowingLoader)
    finally:
        log.disabled = before
