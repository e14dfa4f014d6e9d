"""The weights of a model while it is worked on: whole in memory, or in its files but for what is in use.

A model whose weights lie in safetensors files, as it names them or as transformers converts them (`tensor_reader`), is
built without memory for them. Whoever runs or reads a layer holds it for as long:

    with weights.layer(3):
        ...

The rest of the time its parameters are on the meta device. Every other model (a GGUF file, or tensors that do not fit
the model's one by one) is loaded whole, and holding changes nothing.
"""

import logging
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..base.errors import NestQuantError
from ..base.memory import return_blocks
from ..kernels.dense import use_float32_products
from .empty_model import empty_model, first_dtype, keep_untied
from .experts import ExpertMatrices
from .language_model import runner, tower_stacks
from .load import load_unpacked_model, read_generation_config, stored_tensors, warn_unused
from .on_demand import beyond_budget, read_on_demand
from .shards import Entry
from .size_limits import refuse_misfit
from .source import Source, load_config
from .structure import Decoder, open_decoder
from .tensor_reader import TensorReader

PIECE = 1 << 24  # entries looked at a time
_MANY = 256 << 20  # bytes that are read at once, after which freed blocks are returned
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
        use_float32_products(model)
        self.device = next(model.parameters()).device

    def layer(self, index: int) -> AbstractContextManager[None]:
        """Holds decoder layer `index`."""
        return nullcontext()

    def around(self) -> AbstractContextManager[None]:
        """Holds what runs before and after the decoder layers, without the output head."""
        return nullcontext()

    def holding(self, modules: Collection[str]) -> AbstractContextManager[None]:
        """Holds modules by their full names, such as experts' Linears that are not held with their layer.

        What is held already stays so after it. Threads may hold different modules at a time.
        """
        return nullcontext()

    def fetch(self, name: str) -> Tensor:
        """One parameter or buffer by its full name."""
        return _tensor_at(self.model, name)

    def pieces(self, name: str) -> Iterator[Tensor]:
        """One parameter or buffer by its full name in the model's class, in pieces along its first dimension: of a
        parameter that `as_linears` took apart, one for each expert. The layer has to be held."""
        owner, _, leaf = name.rpartition(".")
        module = self.model.get_submodule(owner)._modules.get(leaf)
        yield from module.pieces() if isinstance(module, ExpertMatrices) else (self.fetch(name),)

    def refuse_unusable(self) -> None:
        """Raises NestQuantError when a tensor has NaN or infinite entries, naming it. Looks at one tensor at a time.

        Buffers with infinite entries are let through: they are limits that limit nothing.
        """
        buffers = {name for name, _ in self.model.named_buffers()}
        for name in self.model.state_dict():
            if name in self.model.all_tied_weights_keys:
                continue
            tensor = self.fetch(name)
            if bad := not_finite(tensor.nan_to_num(torch.nan, 0, 0) if name in buffers else tensor):
                raise NestQuantError(
                    f"{name} has {bad} NaN or infinite entries",
                    "the model was not quantized",
                    "repair or fetch the model again",
                )


class LazyWeights(Weights):
    """A model whose parameters are in memory only while they are held.

    Of a layer whose experts take more than `on_demand.EXPERTS` bytes the first that fit are held with it. The others
    are read whenever they are used, each for as long, unless `holding` has them.

    Args:
        model: model with its parameters on the meta device and its buffers in memory.
        reader: reads the model's tensors; it was made before `as_linears`.
        device: device of parameters while they are held.
    """

    lazy = True

    def __init__(self, model: PreTrainedModel, reader: TensorReader, device: str) -> None:
        super().__init__(model)
        self.reader, self.device = reader, torch.device(device)
        reader.follow(model)
        for module in model.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = buffer.to(self.device)
        for name, buffer in model.named_buffers():
            if name in reader:  # others are computed by the model
                buffer.copy_(self.fetch(name))
        self._on_demand: set[str] = set()
        for index, layer in enumerate(self.decoder.layers):
            for linear in beyond_budget(layer):
                name = f"{self.decoder.layer_name(index)}.{linear}.weight"
                self._on_demand.add(name)
                read_on_demand(layer.get_submodule(linear), reader, name, self.device)  # type: ignore[arg-type]

    def layer(self, index: int) -> AbstractContextManager[None]:
        prefix = self.decoder.layer_name(index)
        names = [f"{prefix}.{name}" for name, _ in self.decoder.layers[index].named_parameters()]
        return self._holding([name for name in names if name not in self._on_demand])

    def around(self) -> AbstractContextManager[None]:
        base, _ = runner(self.model, self.decoder.prefix)
        prefix = f"{base}." if base else ""
        stacks = tuple(f"{name}." for name in (self.decoder.prefix, *tower_stacks(self.model)))
        names = [name for name, _ in self.model.named_parameters()]
        return self._holding([name for name in names if name.startswith(prefix) and not name.startswith(stacks)])

    def holding(self, modules: Collection[str]) -> AbstractContextManager[None]:
        found = {module: self.model.get_submodule(module) for module in modules}
        return self._holding([f"{module}.{leaf}" for module in found for leaf, _ in found[module].named_parameters()])

    def fetch(self, name: str) -> Tensor:
        stored = name if name in self.reader else self.model.all_tied_weights_keys[name]
        return self.reader.read(stored, _tensor_at(self.model, name).dtype)

    @contextmanager
    def _holding(self, names: Collection[str]) -> Iterator[None]:
        names = [name for name in names if _tensor_at(self.model, name).is_meta]
        for name in names:
            self._put(name, self.fetch(name).to(self.device))
        if sum(_tensor_at(self.model, name).nbytes for name in names) >= _MANY:
            return_blocks()  # of what the tensors were made of: 0.5 GiB beside a layer of 1.2 GB in experts one by one
        try:
            yield
        finally:
            for name in names:
                self._put(name, _tensor_at(self.model, name).to("meta"))

    def _put(self, name: str, tensor: Tensor) -> None:
        owner, _, leaf = name.rpartition(".")
        setattr(self.model.get_submodule(owner), leaf, nn.Parameter(tensor.detach(), requires_grad=False))


def _tensor_at(model: nn.Module, name: str) -> Tensor:
    """A parameter or buffer by its full name, as it lies in memory or on the meta device."""
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    tensor = module._parameters[leaf] if leaf in module._parameters else module._buffers[leaf]
    assert tensor is not None
    return tensor


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
    stored_dtype = getattr(config, "dtype", None) or first_dtype(stored)
    model = empty_model(config, stored_dtype if dtype == "auto" else getattr(torch, dtype))
    reader, reason = _reader(model, stored)
    if reader is None:
        return reason, None
    opened = LazyWeights(model.eval(), reader, device)
    keep_untied(model, reader)
    warn_unused(source, model, reader.unused)
    read_generation_config(model, Path(source.path))
    return "", opened


def _reader(model: PreTrainedModel, stored: dict[str, tuple[Path, Entry]]) -> tuple[TensorReader | None, str]:
    """What reads the tensors of a model, or None and the reason."""
    try:
        reader = TensorReader(model, stored)
    except Exception as error:  # converters raise of every kind where tensors are not those that they expect
        return None, f"transformers converts its tensors while it loads them ({error or type(error).__name__})"
    misfit = reader.misfit(model)
    return (None, misfit) if misfit else (reader, "")


def not_finite(tensor: Tensor) -> int:
    """How many entries are NaN or infinite."""
    if not tensor.is_floating_point():
        return 0
    return sum(int((~torch.isfinite(piece)).sum()) for piece in tensor.reshape(-1).split(PIECE))


def _refuse_adapters(source: Source) -> None:
    """Raises NestQuantError for a folder with an adapter, which transformers would add to the weights."""
    if not source.gguf_file and (Path(source.path) / ADAPTER).is_file():
        raise NestQuantError(
            f"{source.name} has an adapter next to its weights ({ADAPTER})",
            "it was not opened, since the adapter would be left out",
            "merge it with merge_and_unload() of peft and save the model, or move the adapter's files away",
        )
