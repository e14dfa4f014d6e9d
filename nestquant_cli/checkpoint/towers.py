"""Which tensors of a checkpoint are of the towers around a language model, told by their names alone."""

from collections.abc import Collection, Mapping
from itertools import takewhile
from typing import Any

_OURS = "quantization_config"


def has_parts(config: Mapping[str, Any]) -> bool:
    """Whether a parsed config.json describes parts, such as a vision tower."""
    return any(key.endswith("_config") and isinstance(config[key], dict) for key in config if key != _OURS)


def tower_tensors(names: Collection[str], stack: str) -> set[str]:
    """Names of the tensors of towers and of what joins them to the language model; none where nothing else has layers.

    The language model is the largest module around its decoder layers that is around no other layers. The modules next
    to it are the towers and what joins them; a tensor further out, such as the output head's, is of neither.

    Args:
        names: names of all tensors.
        stack: name of the decoder layers.

    Example:
        >>> names = ["model.vision.layers.0.fc.weight", "model.projector.weight", "lm_head.weight"]
        >>> sorted(tower_tensors(names, "model.text.layers"))
        ['model.projector.weight', 'model.vision.layers.0.fc.weight']
    """
    path = stack.split(".")
    others = [name.split(".") for name in names if _of_layer(name) and not name.startswith(f"{stack}.")]
    if not others:
        return set()
    depth = max(_shared(words, path) for words in others)
    around, language = "".join(f"{word}." for word in path[:depth]), "".join(f"{word}." for word in path[: depth + 1])
    return {name for name in names if name.startswith(around) and not name.startswith(language)}


def _shared(words: list[str], path: list[str]) -> int:
    """How many words two names begin with together."""
    return len(list(takewhile(bool, (one == other for one, other in zip(words, path, strict=False)))))


def _of_layer(name: str) -> bool:
    """Whether a module with a number holds the tensor by another module, as layers do and single matrices do not."""
    return any(word.isdigit() for word in name.split(".")[:-2])
