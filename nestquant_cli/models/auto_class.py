"""Which of transformers' Auto classes opens a model: the one for the class that its config.json names.

A configuration may belong to several classes: Qwen3.5's to the model of images with text and to its language model
alone. `architectures` says which of them the files are of.
"""

from typing import TYPE_CHECKING, Any

from ..base.errors import NestQuantError
from .resolve import NOT_LOADED

if TYPE_CHECKING:
    from transformers import PretrainedConfig

IMAGES = "AutoModelForImageTextToText"
# Auto classes of models that generate text, with their mappings. The first knows a configuration of which
# `architectures` says nothing.
GENERATE_TEXT = {
    "AutoModelForCausalLM": "MODEL_FOR_CAUSAL_LM_MAPPING",
    IMAGES: "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING",
    "AutoModelForMultimodalLM": "MODEL_FOR_MULTIMODAL_LM_MAPPING",
}


def auto_class(config: "PretrainedConfig") -> Any:
    """The Auto class whose `from_pretrained` and `from_config` make the class that a configuration names.

    Where it names none that generates text, it is the first that knows the configuration.

    Raises:
        NestQuantError: transformers has no model for this configuration that generates text.
    """
    import transformers

    return getattr(transformers, auto_names(config)[0])


def auto_names(config: "PretrainedConfig") -> list[str]:
    """Names of the Auto classes that know a configuration, those first that make the class of `auto_class`.

    Raises:
        NestQuantError: transformers has no model for this configuration that generates text, or it names a class that
            generates none.
    """
    _refuse_other_classes(config)
    known = _known(config)
    if not known:
        raise NestQuantError(
            f"transformers has no model that generates text for the configuration of {config.model_type}",
            NOT_LOADED,
            "use a decoder-only language model that this version of transformers knows, or update transformers",
        )
    architectures = getattr(config, "architectures", None) or next(iter(known.values()))
    return sorted(known, key=lambda name: not any(kind in architectures for kind in known[name]))


def _refuse_other_classes(config: "PretrainedConfig") -> None:
    """Raises NestQuantError where a configuration names nothing but classes with another head, such as a classifier's.

    Classes that are not transformers' own say nothing, nor do bases, whose files may have the output head.
    """
    import transformers

    named: list[str] = list(getattr(config, "architectures", None) or ())
    for name in named:
        kind: Any = getattr(transformers, str(name), None)
        if str(name).endswith("Model") or not hasattr(kind, "can_generate") or kind.can_generate():
            return
    if named:
        raise NestQuantError(
            f"config.json says that the model is a {named[0]}, which generates no text",
            NOT_LOADED,
            "use a language model that generates text",
        )


def _known(config: "PretrainedConfig") -> dict[str, tuple[str, ...]]:
    """The names of the classes for a configuration, by the name of the Auto class that knows it."""
    from transformers.models.auto import modeling_auto

    found = {}
    for name, mapping_name in GENERATE_TEXT.items():
        mapping: Any = getattr(modeling_auto, mapping_name, {})  # an earlier transformers 5 has not all of them
        if type(config) in mapping:
            classes = mapping[type(config)]
            classes = classes if isinstance(classes, tuple | list) else (classes,)
            found[name] = tuple(kind.__name__ for kind in classes)
    return found
