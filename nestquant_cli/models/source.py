"""Models by the name a user gives: found (`resolve`), their files, their hash, their configuration and tokenizer.

`models.load` loads what is not packed; `checkpoint.load` loads whatever a name means.
"""

import logging
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.errors import NestQuantError, first_line
from ..storage.files import read_json
from .fingerprint import fingerprint_files
from .hub import download
from .other_methods import forget_method, method_of
from .resolve import NOT_LOADED, Source, refuse_non_decoders, resolve
from .size_limits import check_counts
from .weight_set import WeightSet, weight_set

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

logger = logging.getLogger("nestquant")

__all__ = ["Source", "fingerprint", "load_config", "load_tokenizer", "resolve", "weight_files"]


def weight_files(source: Source, others: Collection[str] = ()) -> list[Path]:
    """Paths of the files that hold the weights: the GGUF file, or one set of safetensors files (`models.weight_set`).

    Those of a model on the Hub are downloaded first.

    Args:
        source: the model.
        others: names of further files to download with them.

    Raises:
        NestQuantError: there is none, only pickles, or a shard that the index names is missing.
    """
    folder = Path(source.path)
    if source.gguf_file:
        return [folder / source.gguf_file]
    files = chosen_weight_set(source).files
    if source.hub is not None:
        download(source.hub, sorted({*files, *others}))
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise NestQuantError(
            f"{_label(source)} lacks {missing[0]}, which its index names",
            NOT_LOADED,
            "download or copy the model again",
        )
    return [folder / name for name in files]


def chosen_weight_set(source: Source) -> WeightSet:
    """Which of the files hold the weights, and the one that transformers is to be given.

    Raises:
        NestQuantError: there is none, only pickles, or several sets of weights.
    """
    folder = Path(source.path)
    known = None if source.hub is None else source.hub.files
    names = [path.name for path in folder.iterdir()] if known is None else [name for name in known if "/" not in name]
    config, label = _raw_config(source), _label(source)
    return weight_set(folder, names, config, label)


def _label(source: Source) -> str:
    """What errors call the model: its path, or its id on the Hub."""
    return source.path if source.hub is None else source.name


def fingerprint(source: Source) -> str:
    """Hex SHA-256 that identifies the model's configuration and weights (rule: `nestquant_cli.models.fingerprint`)."""
    config, files = _raw_config(source), weight_files(source)
    return fingerprint_files(config, files)


def _raw_config(source: Source) -> dict[str, Any]:
    """The parsed config.json; empty for a GGUF file, which holds its own."""
    config: dict[str, Any] = {} if source.gguf_file else read_json(Path(source.path) / "config.json")
    return config


def load_config(source: Source) -> "PretrainedConfig":
    """The model's configuration; of weights that are de-quantized by a written rule that of the model in 16 bits.

    Raises:
        NestQuantError: unreadable, of an unknown architecture, or not a decoder.
    """
    from transformers import AutoConfig

    try:
        raw = _raw_config(source)
        check_counts(raw)
        config = AutoConfig.from_pretrained(source.path, **gguf_argument(source), trust_remote_code=False)
    except Exception as error:  # what a field of config.json can be is without end, and so are the errors
        raise unreadable(source, "configuration", error) from error
    refuse_non_decoders(source.name, config.to_dict() | {"is_encoder_decoder": config.is_encoder_decoder})
    method = method_of(source)
    if method is not None and method.dequantized:
        forget_method(config)
    if source.kind != "packed" and raw.get("auto_map"):
        _note_code(source.name, config.model_type)
    return config


@cache
def _note_code(name: str, kind: str) -> None:
    """Says once that transformers' own class is used for a model that comes with code."""
    logger.info("the code that comes with %s is not used: transformers has the model type %s", name, kind)


def load_tokenizer(source: Source) -> "PreTrainedTokenizerBase":
    """The model's tokenizer.

    Raises:
        NestQuantError: there is none, or it is unreadable.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source.path, **gguf_argument(source), trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises plain Exception for a broken tokenizer.json
        load_config(source)  # it is read for the tokenizer too, and named where it is to blame
        raise NestQuantError(
            f"{source.name} has no usable tokenizer ({first_line(error)})",
            "no text can be turned into tokens",
            "put tokenizer.json and tokenizer_config.json of the original model into its folder",
        ) from error
    if len(tokenizer) == 0:
        raise NestQuantError(
            f"the tokenizer of {source.name} is empty", "no text can be turned into tokens", "copy tokenizer.json to it"
        )
    return tokenizer


def gguf_argument(source: Source) -> dict[str, Any]:
    """What `from_pretrained` needs besides the folder to read a GGUF file; empty for any other model."""
    return {"gguf_file": source.gguf_file} if source.gguf_file else {}


def unreadable(source: Source, what: str, error: Exception) -> NestQuantError:
    """The one-line error for what transformers raised while it read `what` of a model, such as "weights"."""
    text = str(error)
    if "trust_remote_code" in text:
        remedy = "use a model whose architecture is part of transformers: code that comes with a model is never run"
    elif isinstance(error, ImportError):
        remedy = "install the package it names"
    elif "does not recognize this architecture" in text or "Unrecognized configuration class" in text:
        remedy = "use a decoder-only language model that this version of transformers knows, or update transformers"
    else:
        remedy = "check the files, or download the model again"
    return NestQuantError(f"the {what} of {source.name} cannot be loaded ({first_line(error)})", NOT_LOADED, remedy)
