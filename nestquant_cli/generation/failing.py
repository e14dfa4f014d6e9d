"""What is said where transformers itself cannot generate with a model."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..base.errors import NestQuantError, first_line
from .sampling import NOT_GENERATED

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PACKAGE = Path(__file__).resolve().parents[1]


@contextmanager
def describing_failures(model: "PreTrainedModel") -> Iterator[None]:
    """Within it, what fails in the model's own generate() becomes one line.

    What this package's code raises, and what a system lacks (memory, a file, a terminal), goes on as it is.

    Raises:
        NestQuantError: transformers' code of the model raised an error.
    """
    import torch

    try:
        yield
    except (NestQuantError, OSError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        inner = traceback.extract_tb(error.__traceback__)[2:]  # behind this function and the one that called generate()
        if any(Path(frame.filename).is_relative_to(_PACKAGE) for frame in inner):
            raise
        raise NestQuantError(
            f"transformers' {type(model).__name__} cannot continue this text ({first_line(error)})",
            NOT_GENERATED,
            "load it with from_pretrained and call generate(use_cache=False), or use another model",
        ) from error
