"""What a model is, in words for protocols, reports and model cards."""

from pathlib import Path

from .gguf_type import UNQUANTIZED, gguf_type
from .other_methods import method_of
from .resolve import Source


def describe(source: Source, dtype: str = "bfloat16") -> str:
    """Such as "org/model at commit 0123456789ab", or "model, Q4_1 GGUF, de-quantized to bfloat16".

    Weights of a GGUF file, or in FP8 or MXFP4, have lost what that form does not hold: whoever measures against them
    has to know.

    Args:
        source: the model.
        dtype: dtype that weights are de-quantized to.
    """
    if source.gguf_file:
        kind = gguf_type(Path(source.path) / source.gguf_file)
        if kind is None:
            return f"{source.name}, GGUF, read in {dtype}"
        name = source.name
        if name.lower().endswith(kind.lower()) and name[: -len(kind)].endswith((".", "-", "_")):
            name = name[: -len(kind) - 1]
        return f"{name}, {kind} GGUF, {'read in' if kind in UNQUANTIZED else 'de-quantized to'} {dtype}"
    name = source.name if source.hub is None else f"{source.name} at commit {source.hub.sha[:12]}"
    method = method_of(source)
    if method is not None and method.dequantized:
        return f"{name}, {method.label}, de-quantized to {dtype}"
    return name
