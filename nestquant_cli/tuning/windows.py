"""The windows of a tuning: all of a text without overlap, some of them held out, the others in random order."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..calibration.text import load_text
from ..calibration.windows import token_windows
from ..errors import NestQuantError
from .settings import TuneSettings


@dataclass(frozen=True)
class TuneWindows:
    """Token ids.

    Attributes:
        train: (windows, tokens) int64.
        held_out: (windows, tokens) int64, none of them among the others.
        text_sha256: of the text that they are from.
        seed: of the order.
    """

    train: Tensor
    held_out: Tensor
    text_sha256: str
    seed: int

    def of_step(self, step: int, batch: int) -> Iterator[Tensor]:
        """The windows (tokens,) of a step: all of the text is seen before any of it again, in another order."""
        count = len(self.train)
        for number in range(step * batch, (step + 1) * batch):
            yield self.train[_order(count, self.seed + 1 + number // count)[number % count]]


def read_tune_windows(
    dataset: str, tokenizer: PreTrainedTokenizerBase, settings: TuneSettings, seed: int
) -> TuneWindows:
    """Cuts the "train" split of a data set.

    Raises:
        NestQuantError: the text cannot be read, or has no window left to tune on.
    """
    text = load_text(dataset, "train")
    windows = token_windows(text, tokenizer, settings.seqlen)
    if len(windows) <= settings.held_out:
        raise NestQuantError(
            f"{text.name} has {len(windows)} windows of {settings.seqlen} tokens and {settings.held_out} are held out",
            "nothing was tuned",
            "use a longer text, shorter windows, or hold out fewer",
        )
    held_out, train = windows[_order(len(windows), seed)].split([settings.held_out, len(windows) - settings.held_out])
    return TuneWindows(train, held_out, text.sha256, seed)


def _order(count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))
