"""Loads a model that is not packed: a folder, a GGUF file, or what the Hub has.

Files are compared with the configuration before anything is allocated for them, and code that comes with a model is
never run.
"""

import logging
import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.errors import NestQuantError
from ..base.names import nearest
from .auto_class import auto_class
from .dequantize import dequantized
from .other_methods import method_of, refuse_unreadable
from .resolve import NOT_LOADED, Source
from .shards import ComputedEntry, Entry, read_shard, read_tensor
from .size_limits import Shapes, meta_model, refuse_depth, refuse_misfit
from .source import chosen_weight_set, gguf_argument, load_config, unreadable, weight_files
from .weight_set import CHOICE, INDEX, SINGLE

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

logger = logging.getLogger("nestquant")


def check_dtype(dtype: "str | torch.dtype") -> None:
    """Raises NestQuantError for the name of a dtype that torch does not have; "auto" is one."""
    import torch

    if isinstance(dtype, str) and dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        known = ("auto", "float32", "bfloat16", "float16")
        raise NestQuantError(f"there is no dtype '{dtype}'", "the model was not loaded", nearest(dtype, known))


def load_unpacked_model(source: Source, dtype: "str | torch.dtype" = "auto", device: str = "cpu") -> "PreTrainedModel":
    """Loads a model in eval mode on one device.

    Args:
        source: any model that is not a packed checkpoint.
        dtype: a torch dtype or its name; "auto" is the checkpoint's, and bfloat16 for GGUF, which is de-quantized.
        device: a torch device.

    Raises:
        NestQuantError: files are missing, truncated or damaged, tensors are missing, the model is not a decoder, or
            there is no such dtype.
    """
    import torch

    from ..kernels.dense import use_float32_products

    check_dtype(dtype)
    refuse_unreadable(source)
    config = load_config(source)
    arguments: dict[str, Any] = {"dtype": dtype, "config": config, "output_loading_info": True}
    load: Any = partial(auto_class(config).from_pretrained, source.path, trust_remote_code=False)
    if source.gguf_file:
        arguments |= {"dtype": torch.bfloat16 if dtype == "auto" else dtype, **gguf_argument(source), **_dequantize()}
    else:
        stored = stored_tensors(source)
        shapes = {name: entry.shape for name, (_, entry) in stored.items()}
        _choose_weights(source, chosen_weight_set(source).entry, config)
        _refuse_misfit(config, shapes)
        if any(isinstance(entry, ComputedEntry) for _, entry in stored.values()):
            load = partial(type(meta_model(config)).from_pretrained, None)
            arguments["state_dict"] = {name: _Whole(*place) for name, place in stored.items()}
        else:
            arguments["use_safetensors"] = True  # a pickle in the same folder is never read
    logger.info("loading %s", source.name)
    try:
        loaded: Any = load(**arguments)
    except Exception as error:
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            raise
        raise unreadable(source, "weights", error) from error
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise _lacking(source, model, missing)
    warn_unused(source, model, info["unexpected_keys"])
    if source.gguf_file:
        _forget_gguf(model)
    if "state_dict" in arguments:
        read_generation_config(model, Path(source.path))
    vars(model.config).pop(CHOICE, None)  # it names a file of this folder, and would be saved with other files
    use_float32_products(model)
    return model.to(device).eval()


def _lacking(source: Source, model: "PreTrainedModel", missing: list[str]) -> NestQuantError:
    """The error for tensors that are not in the files; a base model has no output head, and no download brings it."""
    named, kind = (model.config.architectures or ["?"])[0], type(model).__name__
    remedy = "download or copy the model again"
    if named != kind and named.endswith("Model"):
        remedy = f"use a model that generates text: config.json says that this one is a {named}, without output head"
    return NestQuantError(
        f"the weights of {source.name} lack {len(missing)} tensors, the first is {missing[0]}",
        "it would run with random numbers in their place and was not loaded",
        remedy,
    )


def warn_unused(source: Source, model: "PreTrainedModel", names: Iterable[str]) -> None:
    """Names tensors of a model's files that the model does not have, except those that its class says to ignore."""
    ignored = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    unused = sorted(name for name in names if not any(re.search(pattern, name) for pattern in ignored))
    if unused:
        more = f" and {len(unused) - 1} more tensors" if len(unused) > 1 else ""
        logger.warning("%s%s in the files of %s are not used by the model", unused[0], more, source.name)


def _choose_weights(source: Source, entry: str | None, config: "PretrainedConfig") -> None:
    """Has transformers read the file or index `entry` where it would choose another one by itself."""
    usual = SINGLE if (Path(source.path) / SINGLE).is_file() else INDEX
    if entry not in (None, usual):
        setattr(config, CHOICE, entry)


def _refuse_misfit(config: "PretrainedConfig", shapes: Shapes) -> None:
    if getattr(config, "quantization_config", None) is None:
        refuse_misfit(config, shapes)
    else:  # the files hold something else than the tensors of the model that the configuration alone describes
        refuse_depth(config, len(shapes), "the tensors of its files are")


def stored_tensors(source: Source) -> dict[str, tuple[Path, Entry]]:
    """File and entry of every tensor of a model folder by its name in the files; nothing but headers is read.

    Tensors of a method whose weights are de-quantized by a written rule (`models.dequantize`) are those that the model
    would have in 16 bits.

    Raises:
        NestQuantError: a file is missing, truncated or damaged, two files that no index names have the same tensor, or
            a tensor cannot be de-quantized.
    """
    stored: dict[str, tuple[Path, Entry]] = {}
    for file in weight_files(source):
        try:
            entries = {name: (file, entry) for name, entry in read_shard(file).entries.items()}
        except NestQuantError as error:
            reason = error.cause.removeprefix(f"{file} ").removeprefix("is damaged: ")
            raise NestQuantError(
                f"{file} is truncated or damaged ({reason})", NOT_LOADED, "download or copy it again"
            ) from error
        if (both := stored.keys() & entries.keys()) and chosen_weight_set(source).entry is None:
            raise _in_two_files(file, stored[min(both)][0], min(both))
        stored |= entries
    method = method_of(source)
    if method is not None and method.dequantized:
        stored = dequantized(method, stored, source.name)
        logger.info("the weights of %s are de-quantized from %s", source.name, method.label)
    return stored


def _in_two_files(file: Path, other: Path, name: str) -> NestQuantError:
    """The error for a tensor that two files without an index have: which of them is meant cannot be known."""
    return NestQuantError(
        f"{other.name} and {file.name} of {file.parent} both have {name}, and no index says which is meant",
        NOT_LOADED,
        f'name one in its config.json: "{CHOICE}": "{other.name}"',
    )


class _Whole:
    """A tensor of a file in the form in which transformers takes it: read when it asks for all of it."""

    def __init__(self, path: Path, entry: Entry) -> None:
        self.path, self.entry = path, entry

    def __getitem__(self, _: object) -> "torch.Tensor":
        return read_tensor(self.path, self.entry)


def read_generation_config(model: "PreTrainedModel", folder: Path) -> None:
    """Gives a model the generation settings of its folder, where there are some."""
    from transformers import GenerationConfig

    if model.can_generate() and (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)


def _dequantize() -> dict[str, Any]:
    """Versions of transformers that can keep GGUF blocks packed must be set not to."""
    import transformers

    gguf_config = getattr(transformers, "GgufConfig", None)
    return {"quantization_config": gguf_config(dequantize=True)} if gguf_config else {}


def _forget_gguf(model: Any) -> None:
    """Once de-quantized it is a plain model, and must save and quantize like one."""
    for owner, attribute in ((model.config, "quantization_config"), (model, "hf_quantizer")):
        if hasattr(owner, attribute):
            delattr(owner, attribute)
    model.is_quantized = False
