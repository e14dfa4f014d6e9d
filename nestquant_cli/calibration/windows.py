"""Cuts a text into token windows, for calibration, tuning and evaluation."""

import hashlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..base.errors import NestQuantError
from ..base.names import nearest
from .text import Text
from .token_stream import Affixes, affixes, token_stream

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

BOS_MODES = ("default", "each", "none")
WHOLE_UP_TO = 1 << 22  # characters; of a longer text only as much is tokenized as is needed

logger = logging.getLogger("nestquant")


@dataclass(frozen=True)
class Windows:
    """Token windows for calibration.

    Attributes:
        ids: (samples, seqlen) int64.
        sha256: hex hash of `ids`, as little-endian int64 bytes.
        text: text that they were taken from.
        seqlen: tokens in a window.
        seed: seed of the choice of windows.
        samples: number of windows, fewer than asked for where the text is too short.
        bos: "default", "each" or "none", as `window_start` takes it.
        start: ids that every window begins with.
    """

    ids: "Tensor"
    sha256: str
    text: Text
    seqlen: int
    seed: int
    samples: int
    bos: str = "default"
    start: tuple[int, ...] = ()


def tokenize(
    text: Text, tokenizer: "PreTrainedTokenizerBase", bos: str = "default", tokens: int | None = None
) -> "tuple[Tensor, bool]":
    """The text as one stream of token ids, (n,) int32, and whether it was read to its end.

    Args:
        bos: "default" lets the tokenizer add what it adds to any text, once at the start of the stream; "none" and
            "each" add nothing here (with "each" the windows begin with BOS).
        tokens: number of tokens that are needed; a text of more than WHOLE_UP_TO characters is read no further.
    """
    import numpy as np
    import torch

    _check_bos(bos)
    around = affixes(tokenizer) if bos == "default" else Affixes()
    if around is None:
        ids = tokenizer(text.text, verbose=False, return_attention_mask=False)["input_ids"]
        return torch.tensor(ids, dtype=torch.int32), True
    parts, count = [np.array(around.before, dtype=np.int32)], len(around.before)
    for part in token_stream(text.pieces(), tokenizer):
        parts.append(part)
        count += len(part)
        if tokens is not None and count >= tokens and text.characters > WHOLE_UP_TO:
            return torch.from_numpy(np.concatenate(parts)), False
    return torch.from_numpy(np.concatenate([*parts, np.array(around.after, dtype=np.int32)])), True


def tokens_of(windows: int | None, seqlen: int, bos: str) -> int | None:
    """Number of tokens of the text that `windows` windows for evaluation take; None where all are taken."""
    return None if windows is None else windows * window_stride(seqlen, bos)


def token_windows(
    text: Text, tokenizer: "PreTrainedTokenizerBase", seqlen: int, bos: str = "default", most: int | None = None
) -> "Tensor":
    """Windows for evaluation, (windows, seqlen) int64: tokenized once, cut without overlap, the tail dropped.

    Args:
        seqlen: tokens in a window.
        bos: "default", "each" or "none", as `tokenize` takes it; with "each" a window is the BOS token followed by the
            next seqlen - 1 tokens of the text, so every token of the text is still in exactly one window.
        most: number of windows that are needed, None for all; there may be more.

    Raises:
        NestQuantError: the text is shorter than one window, or the tokenizer has no BOS token for "each".
    """
    tokens, _ = tokenize(text, tokenizer, bos, tokens_of(most, seqlen, bos))
    return cut_windows(tokens, tokenizer, seqlen, bos, text.name).long()


def sample_windows(
    text: Text, tokenizer: "PreTrainedTokenizerBase", seqlen: int, samples: int, seed: int, bos: str = "default"
) -> Windows:
    """Windows for calibration, from `samples` random places of the token stream, as in GPTQ.

    Each window begins with the tokens of `window_start`, and continues with tokens of the text. Windows start anywhere,
    no two at the same place, and may overlap; where the text has fewer possible starts than `samples`, each is taken
    once and `samples` is capped, which is logged. The choice depends on the tokens, `seqlen`, `samples`, `seed` and
    `bos` only.

    Raises:
        NestQuantError: the text is shorter than one window, or the tokenizer has no BOS token for "each".
    """
    import torch

    if seqlen < 1 or samples < 1:
        raise NestQuantError(f"{samples} samples of {seqlen} tokens", "nothing was sampled", "use positive numbers")
    start = window_start(tokenizer, bos, seqlen)
    tokens, _ = tokenize(text, tokenizer, "none" if start else bos)
    length = seqlen - len(start)
    starts = len(tokens) - length + 1
    if starts < 1:
        raise _too_short(text.name, len(tokens), seqlen)
    if samples * length > len(tokens):
        logger.warning(
            "%s has %d tokens, so its %d windows of %d overlap", text.name, len(tokens), min(samples, starts), seqlen
        )
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(starts, generator=generator)[:samples]  # (samples,)
    ids = _starting(tokens[chosen[:, None] + torch.arange(length)], start).long()  # (samples, seqlen)
    return Windows(ids, hash_tokens(ids), text, seqlen, seed, len(ids), bos, start)


def window_start(tokenizer: "PreTrainedTokenizerBase", bos: str, seqlen: int) -> tuple[int, ...]:
    """Ids that every window for calibration and tuning begins with.

    Args:
        tokenizer: tokenizer of the model.
        bos: "default" is what the tokenizer puts in front of any text by itself (BOS for those models that want it,
            nothing for most), "each" the BOS token, "none" nothing.
        seqlen: tokens in a window.

    Raises:
        NestQuantError: the tokenizer has no BOS token for "each", or a window has no room for tokens of the text.
    """
    _check_bos(bos)
    start: tuple[int, ...] = ()
    if bos == "each":
        start = (_bos_of(tokenizer),)
    elif bos == "default":
        start = (affixes(tokenizer) or Affixes()).before
    if seqlen < len(start) + 1:
        raise NestQuantError(
            f"--seqlen {seqlen} leaves no room for text behind BOS", "no windows were made", "use more, or --bos none"
        )
    return start


def cut_calibration_windows(
    text: Text, tokenizer: "PreTrainedTokenizerBase", seqlen: int, bos: str = "default"
) -> "Tensor":
    """The whole text in windows (windows, seqlen) int32 without overlap, each begun as for calibration.

    Raises:
        NestQuantError: the text is shorter than one window, or the tokenizer has no BOS token for "each".
    """
    start = window_start(tokenizer, bos, seqlen)
    tokens, _ = tokenize(text, tokenizer, "none" if start else bos)
    length = seqlen - len(start)
    count = len(tokens) // length
    if count == 0:
        raise _too_short(text.name, len(tokens), seqlen)
    return _starting(tokens[: count * length].view(count, length), start)


def hash_tokens(ids: "Tensor") -> str:
    """Hex SHA-256 of token ids of any shape, as little-endian int64 in row-major order."""
    return hashlib.sha256(ids.cpu().numpy().astype("<i8").tobytes()).hexdigest()


def cut_windows(
    tokens: "Tensor", tokenizer: "PreTrainedTokenizerBase", seqlen: int, bos: str, name: str = "the text"
) -> "Tensor":
    """Windows for evaluation (windows, seqlen) from a token stream (n,) that `tokenize` made with the same `bos`.

    They have the dtype of the stream. With "each" a window is BOS and the next seqlen - 1 tokens.

    Raises:
        NestQuantError: the text is shorter than one window, or the tokenizer has no BOS token for "each".
    """
    if seqlen < 2:
        raise NestQuantError(f"--seqlen {seqlen} leaves no token to predict", "nothing was scored", "use 2 or more")
    stride = window_stride(seqlen, bos)
    count = len(tokens) // stride
    if count == 0:
        raise _too_short(name, len(tokens), seqlen)
    windows = tokens[: count * stride].view(count, stride)
    return windows if bos != "each" else _starting(windows, (_bos_of(tokenizer),))


def window_stride(seqlen: int, bos: str) -> int:
    """Tokens of the text from the start of one window to the start of the next."""
    return seqlen - 1 if bos == "each" else seqlen


def _starting(windows: "Tensor", start: tuple[int, ...]) -> "Tensor":
    """Windows (windows, tokens) with the ids `start` in front of each."""
    import torch

    first = torch.tensor(start, dtype=windows.dtype).expand(len(windows), len(start))
    return torch.cat([first, windows], dim=1)


def _bos_of(tokenizer: "PreTrainedTokenizerBase") -> int:
    if tokenizer.bos_token_id is None:
        raise NestQuantError("this tokenizer has no BOS token", "no windows were made", "use --bos default")
    return int(tokenizer.bos_token_id)


def _check_bos(bos: str) -> None:
    if bos not in BOS_MODES:
        raise NestQuantError(f"--bos {bos} is not known", "nothing was tokenized", nearest(bos, BOS_MODES))


def _too_short(name: str, tokens: int, seqlen: int) -> NestQuantError:
    return NestQuantError(
        f"{name} has {tokens} tokens, fewer than one window of {seqlen}",
        "there is nothing to compute on",
        "use a longer text or a smaller --seqlen",
    )
