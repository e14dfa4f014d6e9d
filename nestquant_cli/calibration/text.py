"""Data sets by name or file, as one text each."""

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import NestQuantError
from ..names import nearest
from .demo_text import demo_documents

CRLF = "\r\n"
JOIN = "\n\n"  # between documents; also what a text file is taken to hold already
SPLITS = ("train", "validation", "test")
WIKITEXT2 = ("Salesforce/wikitext", "wikitext-2-raw-v1")
C4 = "allenai/c4"
C4_FILES = {"train": "en/c4-train.00000-of-01024.json.gz", "validation": "en/c4-validation.00000-of-00008.json.gz"}
C4_DOCUMENTS = {"train": 8000, "validation": 1100}  # the first ones: 4 million and half a million tokens
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
        raise NestQuantError(f"there is no split '{split}'", NOT_READ, nearest(split, SPLITS))
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
    from ..models.hub import cache_only_when_unreachable, reason_of, unreachable

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
        raise NestQuantError(
            f"{name} cannot be read from the Hugging Face Hub ({unreachable() or reason_of(error)})",
            NOT_READ,
            "check the connection, or give a local .txt or .jsonl file with --dataset",
        ) from error
