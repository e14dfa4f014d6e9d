"""The token windows that calibration and evaluation read from a text."""

import hashlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import NestQuantError
from ..names import nearest
from .text import Text

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

BOS_MODES = ("default", "each", "none")

logger = logging.getLogger("nestquant")


@dataclass(frozen=True)
class Windows:
    """Token windows for calibration.

    Attributes:
        ids: (samples, seqlen) int64.
        sha256: hex hash of `ids`, as little-endian int64 bytes.
        dataset: name of the data set.
        text_sha256: hash of the text they were taken from.
        seqlen: tokens in a window.
        seed: what they were chosen with.
        samples: the number of windows, which is below the one asked for where the text is too short for it.
    """

    ids: "Tensor"
    sha256: str
    dataset: str
    text_sha256: str
    seqlen: int
    seed: int
    samples: int


def tokenize(text: Text, tokenizer: "PreTrainedTokenizerBase", bos: str = "default") -> "Tensor":
    """The whole text as one stream of token ids, (n,) int64.

    Args:
        bos: "default" lets the tokenizer add what it adds to any text, once at the start of the stream; "none" and
            "each" add nothing here ("each" is the business of the windows).
    """
    import torch

    if bos not in BOS_MODES:
        raise NestQuantError(f"--bos {bos} is not known", "nothing was tokenized", nearest(bos, BOS_MODES))
    # verbose=False: a stream longer than the model's context is meant, it is cut into windows
    ids = tokenizer(text.text, add_special_tokens=bos == "default", verbose=False, return_attention_mask=False)
    return torch.tensor(ids["input_ids"], dtype=torch.int64)


def token_windows(text: Text, tokenizer: "PreTrainedTokenizerBase", seqlen: int, bos: str = "default") -> "Tensor":
    """Windows for evaluation, (windows, seqlen) int64: tokenized once, cut without overlap, the tail dropped.

    Args:
        seqlen: tokens in a window.
        bos: as in `tokenize`; with "each" a window is the BOS token followed by the next seqlen - 1 tokens of the
            text, so every token of the text is still in exactly one window.

    Raises:
        NestQuantError: the text is shorter than one window, or the tokenizer has no BOS token for "each".
    """
    return cut_windows(tokenize(text, tokenizer, bos), tokenizer, seqlen, bos, text.name)


def sample_windows(text: Text, tokenizer: "PreTrainedTokenizerBase", seqlen: int, samples: int, seed: int) -> Windows:
    """Windows for calibration: `samples` random places of the token stream, as GPTQ takes them.

    The stream is tokenized as the tokenizer does by default. Windows start anywhere, no two at the same place, and may
    overlap; where the text has fewer possible starts than `samples`, each is taken once and `samples` is capped, which
    is logged. The choice depends on the tokens, `seqlen`, `samples` and `seed` only.

    Raises:
        NestQuantError: the text is shorter than one window.
    """
    import torch

    if seqlen < 1 or samples < 1:
        raise NestQuantError(f"{samples} samples of {seqlen} tokens", "nothing was sampled", "use positive numbers")
    tokens = tokenize(text, tokenizer)
    starts = len(tokens) - seqlen + 1
    if starts < 1:
        raise _too_short(text.name, len(tokens), seqlen)
    if samples * seqlen > len(tokens):
        logger.warning(
            "%s has %d tokens, so its %d windows of %d overlap", text.name, len(tokens), min(samples, starts), seqlen
        )
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(starts, generator=generator)[:samples]  # (samples,)
    ids = tokens[chosen[:, None] + torch.arange(seqlen)]  # (samples, seqlen)
    return Windows(ids, hash_tokens(ids), text.name, text.sha256, seqlen, seed, len(ids))


def hash_tokens(ids: "Tensor") -> str:
    """Hex SHA-256 of token ids of any shape, as little-endian int64 in row-major order."""
    return hashlib.sha256(ids.cpu().numpy().astype("<i8").tobytes()).hexdigest()


def cut_windows(
    tokens: "Tensor", tokenizer: "PreTrainedTokenizerBase", seqlen: int, bos: str, name: str = "the text"
) -> "Tensor":
    """As `token_windows`, from the token stream (n,) that `tokenize` made with the same `bos`."""
    import torch

    if seqlen < 2:
        raise NestQuantError(f"--seqlen {seqlen} leaves no token to predict", "nothing was scored", "use 2 or more")
    stride = window_stride(seqlen, bos)
    count = len(tokens) // stride
    if count == 0:
        raise _too_short(name, len(tokens), seqlen)
    windows = tokens[: count * stride].view(count, stride)
    if bos != "each":
        return windows
    if tokenizer.bos_token_id is None:
        raise NestQuantError("this tokenizer has no BOS token", "no windows were made", "use --bos default")
    first = torch.full((count, 1), tokenizer.bos_token_id, dtype=torch.int64)
    return torch.cat([first, windows], dim=1)


def window_stride(seqlen: int, bos: str) -> int:
    """Tokens of the text from the start of one window to the start of the next."""
    return seqlen - 1 if bos == "each" else seqlen


def _too_short(name: str, tokens: int, seqlen: int) -> NestQuantError:
    return NestQuantError(
        f"{name} has {tokens} tokens, fewer than one window of {seqlen}",
        "there is nothing to compute on",
        "use a longer text or a smaller --seqlen",
    )
