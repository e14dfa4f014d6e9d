"""The files that a processor needs, such as one that turns images into inputs: kept beside the packed model.

Their names are many and new ones come: every small file at the top of the original's folder belongs to the processor or
the tokenizer, but for those that describe the weights or that a checkpoint has of its own.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from .resolve import SMALL_FILES, Source
from .weight_set import INDEX_END

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_OWN = ("config.json", "generation_config.json")  # a checkpoint writes these itself
_INDICES = (INDEX_END, ".bin.index.json")


def has_processor(config: "PretrainedConfig") -> bool:
    """Whether a model takes more than text: its configuration has a part besides that of the text."""
    text = config.get_text_config(decoder=True)
    parts = (getattr(config, name, None) for name in getattr(config, "sub_configs", None) or ())
    return any(part is not None and part is not text for part in parts)


def processor_files(source: Source) -> list[Path]:
    """The files of processor and tokenizer of a model folder, sorted by name. A model on the Hub has them here."""
    found = (path for path in Path(source.path).iterdir() if path.is_file() and path.name.endswith(SMALL_FILES))
    return sorted(path for path in found if path.name not in _OWN and not path.name.endswith(_INDICES))
