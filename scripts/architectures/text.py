"""The text of the runs, and a tokenizer of 300 tokens for it."""

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

LICENSE = Path(__file__).resolve().parents[2] / "LICENSE"  # ten thousand words' worth of English that never changes
TOKENS = 300  # of the tokenizer; ids above it stand for images and sounds


def save_tokenizer(folder: Path, text: str) -> None:
    """A byte-level BPE tokenizer, trained on `text`, in the form of the Hub."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENS,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", model_max_length=256
    ).save_pretrained(folder)


def token_ids(tokens: int, seed: int = 0) -> Tensor:
    """Random token ids (1, tokens) int64, without special ones."""
    return torch.randint(2, TOKENS, (1, tokens), generator=torch.Generator().manual_seed(seed))


def left_padded(rows: Sequence[Tensor], padding: int) -> tuple[Tensor, Tensor]:
    """Rows of token ids (1, n) as one batch, with padding before the shorter ones, and its attention mask."""
    width = max(row.shape[1] for row in rows)
    gaps = [width - row.shape[1] for row in rows]
    ids = [torch.cat([torch.full((1, gap), padding), row], 1) for gap, row in zip(gaps, rows, strict=True)]
    return torch.cat(ids), (torch.arange(width)[None] >= torch.tensor(gaps)[:, None]).long()
