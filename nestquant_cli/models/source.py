"""Models by the name a user gives: found (`resolve`), identified (`fingerprint`) and loaded, whatever their kind."""

import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.errors import NestQuantError
from ..base.names import nearest
from ..storage.files import read_json
from .fingerprint import fingerprint_files
from .hub import download
from .limits import Shapes, check_counts, refuse_depth, refuse_misfit
from .resolve import NOT_LOADED, Source, refuse_non_decoders, resolve
from .weight_set import CHOICE, INDEX, SINGLE, WeightSet, weight_set

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


__all__ = [
    "Source",
    "fingerprint",
    "load_config",
    "load_model",
    "load_tokenizer",
    "resolve",
    "warn_unused",
    "weight_files",
]

logger = logging.getLogger("nestquant")


def weight_files(source: Source) -> list[Path]:
    """The files that hold the weights: the GGUF file, or one set of safetensors files, see `models.weight_set`.

    Those of a model on the Hub are downloaded first; of a packed checkpoint, all that its manifest lists.

    Raises:
        NestQuantError: there is none, only pickles, or a shard that the index names is missing.
    """
    folder = Path(source.path)
    if source.gguf_file:
        return [folder / source.gguf_file]
    files = _weight_set(source).files
    if source.hub is not None:
        download(source.hub, sorted({*files, *_listed(source)}))
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise NestQuantError(
            f"{_label(source)} lacks {missing[0]}, which its index names",
            NOT_LOADED,
            "download or copy the model again",
        )
    return [folder / name for name in files]


def _weight_set(source: Source) -> WeightSet:
    folder = Path(source.path)
    known = None if source.hub is None else source.hub.files
    names = [path.name for path in folder.iterdir()] if known is None else [name for name in known if "/" not in name]
    return weight_set(folder, names, _raw_config(source), _label(source))


def _listed(source: Source) -> list[str]:
    """Names of the files of a packed checkpoint."""
    if source.kind != "packed":
        return []
    from ..checkpoint.manifest import read_manifest

    return list(read_manifest(Path(source.path))["files"])


def _label(source: Source) -> str:
    return source.path if source.hub is None else source.name


def fingerprint(source: Source) -> str:
    """Hex SHA-256 that identifies the model's configuration and weights (rule: `nestquant_cli.models.fingerprint`)."""
    return fingerprint_files(_raw_config(source), weight_files(source))


def _raw_config(source: Source) -> dict[str, Any]:
    """The parsed config.json; empty for a GGUF file, which holds its own."""
    config: dict[str, Any] = {} if source.gguf_file else read_json(Path(source.path) / "config.json")
    return config


def load_config(source: Source) -> "PretrainedConfig":
    """The model's configuration.

    Raises:
        NestQuantError: unreadable, of an unknown architecture, or not a decoder.
    """
    from transformers import AutoConfig

    try:
        check_counts(_raw_config(source))
        config = AutoConfig.from_pretrained(source.path, **_gguf_argument(source), trust_remote_code=False)
    except Exception as error:  # what a field of config.json can be is without end, and so are the errors
        raise _unreadable(source, "configuration", error) from error
    refuse_non_decoders(source.name, config.to_dict() | {"is_encoder_decoder": config.is_encoder_decoder})
    return config


def load_tokenizer(source: Source) -> "PreTrainedTokenizerBase":
    """The model's tokenizer.

    Raises:
        NestQuantError: there is none, or it is unreadable.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source.path, **_gguf_argument(source), trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises plain Exception for a broken tokenizer.json
        load_config(source)  # it is read for the tokenizer too, and named where it is to blame
        raise NestQuantError(
            f"{source.name} has no usable tokenizer ({_first_line(error)})",
            "no text can be turned into tokens",
            "put tokenizer.json and tokenizer_config.json of the original model into its folder",
        ) from error
    if len(tokenizer) == 0:
        raise NestQuantError(
            f"the tokenizer of {source.name} is empty", "no text can be turned into tokens", "copy tokenizer.json to it"
        )
    return tokenizer


def load_model(source: Source, dtype: "str | torch.dtype" = "auto", device: str = "cpu") -> "PreTrainedModel":
    """Loads the model in eval mode on one device. Code that comes with a model is never run.

    Args:
        dtype: a torch dtype or its name; "auto" is the checkpoint's own, and bfloat16 for GGUF, which is de-quantized.
        device: a torch device.

    Raises:
        NestQuantError: files are missing, truncated or altered, tensors are missing, the model is not a decoder, or
            there is no such dtype.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from ..kernels.dense import use_float32_products

    if isinstance(dtype, str) and dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        known = ("auto", "float32", "bfloat16", "float16")
        raise NestQuantError(f"there is no dtype '{dtype}'", "the model was not loaded", nearest(dtype, known))
    if source.kind == "packed":
        return _load_packed(source, dtype, device)
    config = load_config(source)
    if not source.gguf_file:
        _refuse_misfit(config, _shapes(source))
        _choose_weights(source, config)
    arguments: dict[str, Any] = {"dtype": dtype, "config": config, "output_loading_info": True}
    if not source.gguf_file:
        arguments["use_safetensors"] = True  # a pickle beside them is never read
    if source.gguf_file:
        arguments |= {"dtype": torch.bfloat16 if dtype == "auto" else dtype, **_gguf_argument(source), **_dequantize()}
    logger.info("loading %s", source.name)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(source.path, trust_remote_code=False, **arguments)
    except Exception as error:
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            raise
        raise _unreadable(source, "weights", error) from error
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise NestQuantError(
            f"the weights of {source.name} lack {len(missing)} tensors, the first is {missing[0]}",
            "it would run with random numbers in their place and was not loaded",
            "download or copy the model again",
        )
    warn_unused(source, model, info["unexpected_keys"])
    if source.gguf_file:
        _forget_gguf(model)
    vars(model.config).pop(CHOICE, None)  # of the files it came in; it would be written beside other ones
    use_float32_products(model)
    return model.to(device).eval()


def warn_unused(source: Source, model: "PreTrainedModel", names: Iterable[str]) -> None:
    """Names tensors of a model's files that the model has no place for, but for those that its class says to ignore."""
    ignored = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    unused = sorted(name for name in names if not any(re.search(pattern, name) for pattern in ignored))
    if unused:
        more = f" and {len(unused) - 1} more tensors" if len(unused) > 1 else ""
        logger.warning("%s%s in the files of %s are not used by the model", unused[0], more, source.name)


def _load_packed(source: Source, dtype: "str | torch.dtype", device: str) -> "PreTrainedModel":
    from transformers import AutoModelForCausalLM

    import nestquant_cli  # noqa: F401  registers the format with transformers

    from ..checkpoint.read import check_checkpoint

    folder = Path(source.path)
    if source.hub is not None:
        weight_files(source)  # downloads them
    check_checkpoint(folder, tensors=False)  # those are hashed by the format's own loader
    logger.info("loading %s", source.name)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, trust_remote_code=False)
    return model.to(device).eval()


def _choose_weights(source: Source, config: "PretrainedConfig") -> None:
    """Has transformers read the files of `weight_files` where it would choose others by itself."""
    entry = _weight_set(source).entry
    usual = SINGLE if (Path(source.path) / SINGLE).is_file() else INDEX
    if entry not in (None, usual):
        setattr(config, CHOICE, entry)


def _refuse_misfit(config: "PretrainedConfig", shapes: Shapes) -> None:
    if getattr(config, "quantization_config", None) is None:
        refuse_misfit(config, shapes)
    else:  # the files hold something else than the tensors of the model that the configuration alone describes
        refuse_depth(config, len(shapes), "the tensors of its files are")


def _shapes(source: Source) -> Shapes:
    """Of all tensors; names the file when one is truncated, which the loader's own message does not."""
    from safetensors import SafetensorError, safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for file in weight_files(source):
        try:
            with safe_open(file, framework="pt") as opened:
                shapes |= {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise NestQuantError(
                f"{file} is truncated or damaged ({_first_line(error)})", NOT_LOADED, "download or copy it again"
            ) from error
    return shapes


def _gguf_argument(source: Source) -> dict[str, Any]:
    return {"gguf_file": source.gguf_file} if source.gguf_file else {}


def _dequantize() -> dict[str, Any]:
    """Versions of transformers that can keep GGUF blocks packed must be told not to."""
    import transformers

    gguf_config = getattr(transformers, "GgufConfig", None)
    return {"quantization_config": gguf_config(dequantize=True)} if gguf_config else {}


def _forget_gguf(model: Any) -> None:
    """Once de-quantized it is a plain model, and must save and quantize like one."""
    for owner, attribute in ((model.config, "quantization_config"), (model, "hf_quantizer")):
        if hasattr(owner, attribute):
            delattr(owner, attribute)
    model.is_quantized = False


def _unreadable(source: Source, part: str, error: Exception) -> NestQuantError:
    text = str(error)
    if "trust_remote_code" in text:
        remedy = "use a model whose architecture is part of transformers: code that comes with a model is never run"
    elif isinstance(error, ImportError):
        remedy = "install the package it names"
    elif "does not recognize this architecture" in text or "Unrecognized configuration class" in text:
        remedy = "use a decoder-only language model that this version of transformers knows, or update transformers"
    else:
        remedy = "check the files, or download the model again"
    return NestQuantError(f"the {part} of {source.name} cannot be loaded ({_first_line(error)})", NOT_LOADED, remedy)


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")[:200]
