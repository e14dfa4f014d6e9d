"""Data sets by name or file, as one text each, and the token windows that calibration and evaluation read from it."""

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import NestQuantError
from .demo_text import demo_documents

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

CRLF = "\r\n"
JOIN = "\n\n"  # between documents; also what a text file is taken to hold already
SPLITS = ("train", "validation", "test")
WIKITEXT2 = ("Salesforce/wikitext", "wikitext-2-raw-v1")
C4 = "allenai/c4"
C4_FILES = {"train": "en/c4-train.00000-of-01024.json.gz", "validation": "en/c4-validation.00000-of-00008.json.gz"}
C4_DOCUMENTS = {"train": 8000, "validation": 1100}  # the first ones: 4 million and half a million tokens
BOS_MODES = ("default", "each", "none")
NOT_READ = "no text was read"

logger = logging.getLogger("nestquant")


@dataclass(frozen=True)
class Text:
    """A data set as one string.

    Attributes:
        name: what the user gave.
        split: the split it was read from; "all" for a file, which has none.
        text: the documents joined by two newlines.
        documents: the documents, None where the source is one running text.
        sha256: hex hash of `text` in UTF-8.
        line_ends: of the source, "LF" or "CRLF, read as LF"; `text` always has LF.
    """

    name: str
    split: str
    text: str
    documents: list[str] | None
    sha256: str
    line_ends: str = "LF"


def load_text(dataset: str, split: str) -> Text:
    """Reads a data set.

    Args:
        dataset: `wikitext2`, `c4` (its first documents only: 8000 of train, 1100 of validation), `demo`, or a path to
            a `.txt` file (UTF-8) or a `.jsonl` file (field `text`).
        split: "train", "validation" or "test". Files have none, so it is ignored for them; c4 has no test split, so
            "test" reads its validation split; demo has two parts that share nothing, "train" and the rest.

    Raises:
        NestQuantError: an unknown name, a missing or undecodable file, an empty text, or no connection.
    """
    if split not in SPLITS:
        raise NestQuantError(f"there is no split '{split}'", NOT_READ, f"use one of {', '.join(SPLITS)}")
    suffix = Path(dataset).suffix.lower()
    if dataset == "demo":
        part = "train" if split == "train" else "test"
        return _text(dataset, part, demo_documents(part))
    if dataset == "wikitext2":
        return _text(dataset, split, _download("wikitext2", WIKITEXT2, split))
    if dataset == "c4":
        part = "train" if split == "train" else "validation"
        return _text(dataset, part, _download("c4", (C4,), part))
    if suffix == ".txt":
        return _text(dataset, "all", _read(dataset))
    if suffix == ".jsonl":
        return _text(dataset, "all", _jsonl_documents(dataset, _read(dataset)))
    raise NestQuantError(
        f"'{dataset}' is not a data set that is known here",
        NOT_READ,
        "use wikitext2, c4, demo, or a .txt or .jsonl file",
    )


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
        raise NestQuantError(f"--bos {bos} is not known", "nothing was tokenized", f"use {', '.join(BOS_MODES)}")
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


def _text(name: str, split: str, content: str | list[str]) -> Text:
    parts = [content] if isinstance(content, str) else content
    line_ends = "CRLF, read as LF" if any(CRLF in part for part in parts) else "LF"
    if line_ends != "LF":
        # a copy that went through another system is the same text: left in, the \r tokens shift perplexity by percents
        logger.info("%s has CRLF line ends, which are read as LF", name)
        parts = [part.replace(CRLF, "\n") for part in parts]
    text = JOIN.join(parts)
    if not text.strip():
        raise NestQuantError(f"{name} holds no text", NOT_READ, "give a file with text in it")
    documents = None if isinstance(content, str) else parts
    return Text(name, split, text, documents, hashlib.sha256(text.encode()).hexdigest(), line_ends)


def _read(path: str) -> str:
    try:
        with open(Path(path).expanduser(), encoding="utf-8", newline="") as file:  # "" shows the file's own line ends
            return file.read()
    except OSError as error:
        raise NestQuantError(f"{path} cannot be read ({error.strerror})", NOT_READ, "check the path") from error
    except UnicodeDecodeError as error:
        raise NestQuantError(
            f"{path} is not UTF-8 text (byte {error.start})", NOT_READ, "convert the file to UTF-8"
        ) from error


def _jsonl_documents(path: str, content: str) -> list[str]:
    documents = []
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise NestQuantError(
                f"{path} line {number} is not JSON", NOT_READ, "write one JSON object a line"
            ) from error
        document = record.get("text") if isinstance(record, dict) else None
        if not isinstance(document, str):
            raise NestQuantError(
                f"{path} line {number} has no string in the field 'text'", NOT_READ, 'use lines such as {"text": "..."}'
            )
        documents.append(document)
    return documents


def _download(name: str, repository: tuple[str, ...], split: str) -> list[str]:
    from ..models.hub import cache_only_when_unreachable

    arguments: dict[str, Any] = {"split": split}
    if name == "c4":
        arguments |= {"data_files": {split: C4_FILES[split]}, "streaming": True}
    try:
        with cache_only_when_unreachable():
            import datasets

            rows = datasets.load_dataset(*repository, **arguments)
            rows = rows.take(C4_DOCUMENTS[split]) if name == "c4" else rows
            return [row["text"] for row in rows]
    except Exception as error:  # the Hub's client, its transport and the data reader each have errors of their own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise NestQuantError(
            f"{name} cannot be read from the Hugging Face Hub ({reason})",
            NOT_READ,
            "check the connection, or give a local .txt or .jsonl file with --dataset",
        ) from error


def _too_short(name: str, tokens: int, seqlen: int) -> NestQuantError:
    return NestQuantError(
        f"{name} has {tokens} tokens, fewer than one window of {seqlen}",
        "there is nothing to compute on",
        "use a longer text or a smaller --seqlen",
    )
