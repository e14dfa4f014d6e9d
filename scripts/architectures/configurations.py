"""Small configurations of every architecture, from a table of sizes by the name of the setting and one of forms."""

import dataclasses
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from transformers import CONFIG_MAPPING, PretrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

TABLES = Path(__file__).resolve().parent
SIZES: dict[str, int] = {
    name: size
    for sizes in yaml.safe_load((TABLES / "sizes.yaml").read_text(encoding="utf-8")).values()
    for name, size in sizes.items()
}
FORMS: dict[str, dict[str, Any]] = yaml.safe_load((TABLES / "forms.yaml").read_text(encoding="utf-8"))
VOCABULARY = SIZES["vocab_size"]


def all_cases() -> list[str]:
    """Names of all cases: the forms, and every other entry of the mapping of causal language models."""
    mapped = list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    known = {*mapped, *MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES}  # other forms are of parts, such as a text model
    return list(dict.fromkeys([*(name for name in FORMS if name.partition(":")[0] in known), *mapped]))


def reads_images(name: str) -> bool:
    """Whether a case is opened by AutoModelForImageTextToText: a form that it knows, or what only it knows."""
    kind = name.partition(":")[0]
    known = kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    return known and (kind in FORMS or kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def configuration(
    name: str, sizes: Mapping[str, int] = SIZES, settings: Mapping[str, Any] | None = None
) -> PretrainedConfig:
    """The small configuration of a case, with those of its parts.

    Args:
        name: of the case.
        sizes: by the name of the setting, for all parts.
        settings: over those of the table of forms, for this case.
    """
    return _small(CONFIG_MAPPING[name.partition(":")[0]], FORMS.get(name, {}) | dict(settings or {}), sizes)


def _small(kind: Any, settings: dict[str, Any], sizes: Mapping[str, int]) -> PretrainedConfig:
    aliases: dict[str, str] = getattr(kind, "attribute_map", None) or {}
    if dataclasses.is_dataclass(kind):
        known = {field.name for field in dataclasses.fields(kind)}
    else:
        known = set(inspect.signature(kind.__init__).parameters)
    chosen: dict[str, Any] = {name: size for name, size in sizes.items() if name in known | set(aliases)}
    for alias, name in aliases.items():
        if alias in chosen and name in chosen:
            del chosen[alias]
    found: PretrainedConfig = kind(**chosen | _parts(kind, settings, sizes) | settings)
    return found


def _parts(kind: Any, settings: dict[str, Any], sizes: Mapping[str, int]) -> dict[str, PretrainedConfig]:
    """Small configurations of the parts of a configuration: its text, its towers."""
    parts = getattr(kind, "sub_configs", None) or {}
    default = _default(kind) if parts else None
    found = {}
    for name, declared in parts.items():
        inner = getattr(default, name, None)
        part = declared if inner is None else type(inner)
        if name not in settings and part.__name__ != "AutoConfig":
            found[name] = _small(part, FORMS.get(getattr(part, "model_type", ""), {}), sizes)
    return found


def _default(kind: Any) -> PretrainedConfig | None:
    try:
        found: PretrainedConfig = kind()
        return found
    except Exception:  # some have no default form; then the declared classes of the parts are used
        return None
