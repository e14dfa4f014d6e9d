"""The windows of a tuning: a text cut without overlap; some windows are held out, the others come in random order."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from ..base.errors import NestQuantError
from ..calibration.text import load_text
from ..calibration.windows import cut_calibration_windows, window_start
from ..models.vocabulary import refuse_long_windows, refuse_unknown_tokens
from .settings import TuneSettings

_NOTHING = "nothing was tuned"


@dataclass(frozen=True)
class TuneText:
    """The text to tune on.

    Attributes:
        dataset: name, file, folder or Hub id of a data set (`calibration.text.load_text`).
        field: field of its records with the text; None takes "text", or else "messages".
        bos: what windows begin with: "default", "each" or "none" (`calibration.windows.window_start`).
    """

    dataset: str
    field: str | None = None
    bos: str = "default"


@dataclass(frozen=True)
class TuneWindows:
    """Token windows of a tuning.

    Attributes:
        train: (windows, tokens) token ids of any integer dtype.
        held_out: (windows, tokens) int64 token ids, none of them in `train`.
        about: records of the text, JSON-ready.
        seed: seed of the order of `train`.
    """

    train: Tensor
    held_out: Tensor
    about: dict[str, Any]
    seed: int

    def of_step(self, step: int, batch: int) -> Iterator[Tensor]:
        """Yields the `batch` windows (tokens,) int64 of a step. All come once before any comes again, in another
        order."""
        count = len(self.train)
        for number in range(step * batch, (step + 1) * batch):
            yield self.train[_order(count, self.seed + 1 + number // count)[number % count]].long()


def read_tune_windows(
    source: TuneText, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, settings: TuneSettings, seed: int
) -> TuneWindows:
    """Cuts the "train" split of a data set into windows.

    Args:
        source: the text to read.
        tokenizer: tokenizer of the model.
        config: configuration of the model.
        settings: tokens in a window and number of windows that are held out.
        seed: seed of the choice of held-out windows and of the order of the others.

    Raises:
        NestQuantError: the text cannot be read, has no window left to tune on, or tokens that the model does not know.
    """
    refuse_long_windows(settings.seqlen, config, _NOTHING)
    text = load_text(source.dataset, "train", tokenizer, source.field)
    windows = cut_calibration_windows(text, tokenizer, settings.seqlen, source.bos)
    refuse_unknown_tokens(int(windows.max()), config.get_text_config(decoder=True).vocab_size, _NOTHING)
    if len(windows) <= settings.held_out:
        raise NestQuantError(
            f"{text.name} has {len(windows)} windows of {settings.seqlen} tokens and {settings.held_out} are held out",
            _NOTHING,
            "use a longer text, shorter windows, or hold out fewer",
        )
    held_out, train = windows[_order(len(windows), seed)].split([settings.held_out, len(windows) - settings.held_out])
    about = {
        "dataset": text.name,
        "text_sha256": text.sha256,
        "bos": source.bos,
        "window_start": list(window_start(tokenizer, source.bos, settings.seqlen)),
        "text_field": text.field,
        "chat_template_sha256": text.template,
    }
    return TuneWindows(train, held_out.long(), about, seed)


def _order(count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))
