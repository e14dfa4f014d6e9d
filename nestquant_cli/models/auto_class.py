"""Which of transformers' Auto classes opens a model: the one for the class that its config.json names.

A configuration may belong to several classes: Qwen3.5's to the model of images with text and to its language model
alone. `architectures` says which of them the files are of.
"""

from typing import TYPE_CHECKING, Any

from ..base.errors import NestQuantError
from .resolve import NOT_LOADED

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Auto classes of models that generate text, by the name of their mapping. The first knows a configuration of which
# `architectures` says nothing.
_GENERATE_TEXT = {
    "AutoModelForCausalLM": "MODEL_FOR_CAUSAL_LM_MAPPING",
    "AutoModelForImageTextToText": "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING",
    "AutoModelForMultimodalLM": "MODEL_FOR_MULTIMODAL_LM_MAPPING",
}


def auto_class(config: "PretrainedConfig") -> Any:
    """The Auto class whose `from_pretrained` and `from_config` make the class that a configuration names.

    Where it names none that generates text, it is the first that knows the configuration.

    Raises:
        NestQuantError: transformers has no model for this configuration that generates text.
    """
    known = _known(config)
    if not known:
        raise NestQuantError(
            f"transformers has no model that generates text for the configuration of {config.model_type}",
            NOT_LOADED,
            "use a decoder-only language model that this version of transformers knows, or update transformers",
        )
    named = getattr(config, "architectures", None) or ()
    return next((auto for auto, classes in known if any(kind in named for kind in classes)), known[0][0])


def _known(config: "PretrainedConfig") -> list[tuple[Any, tuple[str, ...]]]:
    """The Auto classes that know a configuration, with the names of their classes for it."""
    import transformers
    from transformers.models.auto import modeling_auto

    found = []
    for name, mapping_name in _GENERATE_TEXT.items():
        mapping: Any = getattr(modeling_auto, mapping_name, {})  # an earlier transformers 5 has not all of them
        if type(config) in mapping:
            classes = mapping[type(config)]
            classes = classes if isinstance(classes, tuple | list) else (classes,)
            found.append((getattr(transformers, name), tuple(kind.__name__ for kind in classes)))
    return found
