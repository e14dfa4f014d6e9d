"""The weights of a model while it is worked on: whole in memory, or in its files but for what is in use.

A model whose weights lie in safetensors files under the names that the model gives them is built without memory for
them. Whoever runs or reads a layer holds it for as long:

    with weights.layer(3):
        ...

The rest of the time its parameters are on the meta device. Every other model (a GGUF file, or names that transformers
converts while it loads) is loaded whole, and holding changes nothing.
"""

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..base.errors import NestQuantError
from ..kernels.dense import use_float32_products
from .auto_class import auto_class
from .language_model import runner, tower_stacks
from .load import load_unpacked_model, read_generation_config, stored_tensors, warn_unused
from .shards import Entry, read_tensor, same_values
from .size_limits import describing, refuse_misfit
from .source import Source, load_config
from .structure import Decoder, open_decoder

PIECE = 1 << 24  # entries looked at a time
ADAPTER = "adapter_config.json"

logger = logging.getLogger("nestquant")


class Weights:
    """A model that is whole in memory.

    Args:
        model: model in eval mode, on its device.
    """

    lazy = False

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.decoder: Decoder = open_decoder(model)
        self.device = next(model.parameters()).device

    def layer(self, index: int) -> AbstractContextManager[None]:
        """Holds decoder layer `index`."""
        return nullcontext()

    def around(self) -> AbstractContextManager[None]:
        """Holds what runs before and after the decoder layers, without the output head."""
        return nullcontext()

    def fetch(self, name: str) -> Tensor:
        """One parameter or buffer by its full name."""
        return self.model.state_dict()[name]

    def refuse_unusable(self) -> None:
        """Raises NestQuantError when a tensor has NaN or infinite entries, naming it. Looks at one tensor at a time."""
        for name in self.model.state_dict():
            if name not in self.model.all_tied_weights_keys and (bad := not_finite(self.fetch(name))):
                raise NestQuantError(
                    f"{name} has {bad} NaN or infinite entries",
                    "the model was not quantized",
                    "repair or fetch the model again",
                )


class LazyWeights(Weights):
    """A model whose parameters are in memory only while they are held.

    Args:
        model: model with its parameters on the meta device and its buffers in memory.
        stored: file and entry of every tensor by its name in the model.
        device: device of parameters while they are held.
    """

    lazy = True

    def __init__(self, model: PreTrainedModel, stored: dict[str, tuple[Path, Entry]], device: str) -> None:
        super().__init__(model)
        self.stored, self.device = stored, torch.device(device)
        for module in model.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = buffer.to(self.device)
        for name, buffer in model.named_buffers():
            if name in stored:  # others are computed by the model
                buffer.copy_(self.fetch(name))

    def layer(self, index: int) -> AbstractContextManager[None]:
        prefix = self.decoder.layer_name(index) + "."
        return self._holding(lambda name: name.startswith(prefix))

    def around(self) -> AbstractContextManager[None]:
        base, _ = runner(self.model, self.decoder.prefix)
        prefix = f"{base}." if base else ""
        stacks = tuple(f"{name}." for name in (self.decoder.prefix, *tower_stacks(self.model)))
        return self._holding(lambda name: name.startswith(prefix) and not name.startswith(stacks))

    def fetch(self, name: str) -> Tensor:
        dtype, (path, entry) = self._wanted(name).dtype, self.stored[name]
        return read_tensor(path, entry).to(dtype)

    @contextmanager
    def _holding(self, wanted: Callable[[str], bool]) -> Iterator[None]:
        names = [name for name, _ in self.model.named_parameters() if wanted(name)]
        for name in names:
            self._put(name, self.fetch(name).to(self.device))
        try:
            yield
        finally:
            for name in names:
                self._put(name, self._wanted(name).to("meta"))

    def _wanted(self, name: str) -> Tensor:
        owner, _, leaf = name.rpartition(".")
        tensor: Tensor = getattr(self.model.get_submodule(owner), leaf)
        return tensor

    def _put(self, name: str, tensor: Tensor) -> None:
        owner, _, leaf = name.rpartition(".")
        setattr(self.model.get_submodule(owner), leaf, nn.Parameter(tensor.detach(), requires_grad=False))


def open_weights(source: Source, device: str, dtype: str = "auto") -> Weights:
    """Opens a model: layer by layer where its files allow that, else whole.

    Args:
        source: the model.
        device: device of its parameters.
        dtype: dtype of its weights; "auto" is that of the model.

    Raises:
        NestQuantError: files are missing, truncated or damaged, or the model is of a kind that is not supported.
    """
    _refuse_adapters(source)
    reason, opened = _open_lazily(source, device, dtype)
    if opened is None:
        logger.info("%s is loaded whole: %s", source.name, reason)
        return Weights(load_unpacked_model(source, dtype, device))
    logger.info("%s is read layer by layer", source.name)
    return opened


def _open_lazily(source: Source, device: str, dtype: str) -> tuple[str, LazyWeights | None]:
    """The model, or why it has to be loaded whole."""
    if source.gguf_file:
        return "the blocks of a GGUF file are de-quantized as one", None
    config = load_config(source)
    if getattr(config, "quantization_config", None) is not None:
        return "it is quantized already", None
    stored = stored_tensors(source)
    refuse_misfit(config, {name: entry.shape for name, (_, entry) in stored.items()})
    stored_dtype = getattr(config, "dtype", None) or _first_dtype(stored)
    model = _empty_model(config, stored_dtype if dtype == "auto" else getattr(torch, dtype))
    if model._keep_in_fp32_modules or model._keep_in_fp32_modules_strict:
        return "parts of it are kept in float32", None
    if _converted(model, stored):
        return "transformers converts its tensors while it loads them", None
    if difference := _misfit(model, stored):
        return difference, None
    _keep_untied(model, stored)
    warn_unused(source, model, stored.keys() - model.state_dict().keys())
    read_generation_config(model, Path(source.path))
    return "", LazyWeights(model.eval(), stored, device)


def _empty_model(config: Any, dtype: torch.dtype | None) -> PreTrainedModel:
    """A model with its parameters on the meta device; buffers, which no file has, are computed as usual."""
    from accelerate import init_empty_weights

    with describing(), init_empty_weights(include_buffers=False):
        model: PreTrainedModel = auto_class(config).from_config(config, dtype=dtype, trust_remote_code=False)
    use_float32_products(model)
    return model


def not_finite(tensor: Tensor) -> int:
    """How many entries are NaN or infinite."""
    if not tensor.is_floating_point():
        return 0
    return sum(int((~torch.isfinite(piece)).sum()) for piece in tensor.reshape(-1).split(PIECE))


def _first_dtype(stored: dict[str, tuple[Path, Entry]]) -> torch.dtype | None:
    names = (entry.dtype for _, entry in stored.values() if "float" in entry.dtype)
    return getattr(torch, next(names, "float32"))


def _converted(model: PreTrainedModel, stored: dict[str, tuple[Path, Entry]]) -> bool:
    """Whether transformers would rename or rearrange one of the tensors."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
    except ImportError:
        return True  # this version keeps its conversions where they cannot be asked for
    patterns = {pattern for conversion in get_model_conversion_mapping(model) for pattern in conversion.source_patterns}
    expressions = [re.compile(pattern) for pattern in patterns]
    return any(expression.search(name) for name in stored for expression in expressions)


def _misfit(model: PreTrainedModel, stored: dict[str, tuple[Path, Entry]]) -> str | None:
    """How the tensors that the model needs differ from those in the files; None where they do not."""
    for name, tensor in model.state_dict().items():
        if name in stored and stored[name][1].shape != tuple(tensor.shape):
            return f"{name} has another shape in its file"
        if name not in stored and name not in model.all_tied_weights_keys:
            return f"its files have no {name}"
    return None


def _keep_untied(model: PreTrainedModel, stored: dict[str, tuple[Path, Entry]]) -> None:
    """Unties a parameter that the configuration ties where its files hold other values for it.

    transformers does the same while it loads a whole model.
    """
    for name, shared in list(model.all_tied_weights_keys.items()):
        if name not in stored or shared not in stored:
            continue
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        if not same_values(stored[name], stored[shared], getattr(module, leaf).dtype):
            logger.warning("%s differs from %s, which config.json ties it to; it is kept as it is", name, shared)
            untied = nn.Parameter(torch.empty_like(getattr(module, leaf)), requires_grad=False)
            setattr(module, leaf, untied)
            del model.all_tied_weights_keys[name]


def _refuse_adapters(source: Source) -> None:
    """Raises NestQuantError for a folder with an adapter, which transformers would add to the weights."""
    if not source.gguf_file and (Path(source.path) / ADAPTER).is_file():
        raise NestQuantError(
            f"{source.name} has an adapter next to its weights ({ADAPTER})",
            "it was not opened, since the adapter would be left out",
            "merge it with merge_and_unload() of peft and save the model, or move the adapter's files away",
        )
