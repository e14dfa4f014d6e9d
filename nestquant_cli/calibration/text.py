"""Reads a data set, given by name, file, folder or Hub id, as one text."""

import hashlib
import itertools
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.errors import NestQuantError
from ..base.names import nearest
from ..models.resolve import HUB_ID
from .named_datasets import hub_records, named_documents
from .record_text import Fields
from .text_files import (
    NOT_READ,
    Marks,
    Records,
    json_records,
    jsonl_records,
    line_feeds,
    parquet_records,
    saved_records,
    suffix_of,
    text_pieces,
    with_line_feeds,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

JOIN = "\n\n"  # between documents; a text file is assumed to have it already
SPLITS = ("train", "validation", "test")

logger = logging.getLogger("nestquant")


@dataclass(frozen=True)
class Text:
    """A data set as one string, which is read from its source again each time: it may be larger than memory.

    Attributes:
        name: name, path or id that the user gave.
        split: the split it was read from; "all" for a file, which has none.
        documents: reads the data set anew, document by document; a text file in pieces of any size.
        join: text between two documents; empty for a text file, and for conversations, whose template ends them.
        sha256: hex hash of the whole in UTF-8.
        characters: number of characters of the whole.
        line_ends: line ends of the source, "LF" or "CRLF, read as LF"; the text always has LF.
        byte_order_mark: whether the source began with one, which is no part of the text.
        field: field of the records that was read; None where the source has none.
        template: hash of the chat template that made text of messages; None where there were none.
    """

    name: str
    split: str
    documents: Callable[[], Iterator[str]]
    join: str
    sha256: str
    characters: int
    line_ends: str = "LF"
    byte_order_mark: bool = False
    field: str | None = None
    template: str | None = None

    def pieces(self) -> Iterator[str]:
        """Yields the text, a document or a piece of one at a time, with `join` between documents."""
        return _joined(self.documents(), self.join)

    @property
    def text(self) -> str:
        """The whole text as one string."""
        return "".join(self.pieces())

    @property
    def source(self) -> dict[str, Any]:
        """How the source was read, JSON-ready, for protocols and reports."""
        return {
            "line_ends": self.line_ends,
            "byte_order_mark": self.byte_order_mark,
            "join": JOIN if self.field is None else self.join,
            "text_field": self.field,
            "chat_template_sha256": self.template,
        }


def load_text(
    dataset: str, split: str, tokenizer: "PreTrainedTokenizerBase | None" = None, field: str | None = None
) -> Text:
    """Reads a data set once, to its end, and checks all of it; what is kept in memory of a file is one piece.

    Args:
        dataset: `wikitext2`, `c4` (its first documents only: 8000 of train, 1100 of validation), `demo`; a path to a
            file, .txt (UTF-8), .jsonl, .json (a list) or .parquet, the first three also gzipped; a folder of
            `save_to_disk` of the `datasets` library; or the id of a data set on the Hub, ORG/NAME or ORG/NAME:CONFIG.
        split: "train", "validation" or "test". Files have none, so it is ignored for them; c4 has no test split, so
            "test" reads its validation split; demo has two parts that share nothing, "train" and the rest.
        tokenizer: tokenizer of the model, whose chat template turns conversations into text.
        field: field of the records with text or messages; None takes `text`, or else `messages`.

    Raises:
        NestQuantError: an unknown name, a missing or undecodable file, an empty text, no field or chat template for
            it, or no connection.
    """
    if split not in SPLITS:
        raise NestQuantError(f"there is no split '{split}'", NOT_READ, nearest(split, SPLITS))
    marks, fields = Marks(), Fields(field, tokenizer)
    part, records = _records(dataset, split, marks)
    if suffix_of(dataset) == ".txt" and records is None:
        _refuse_field(dataset, field)
        return _text(dataset, "all", lambda: with_line_feeds(text_pieces(dataset, marks), marks), "", marks, fields)
    if records is not None:
        rows = records
        return _text(
            dataset,
            part,
            lambda: (line_feeds(document, marks) for document in fields.texts(rows())),
            JOIN,
            marks,
            fields,
        )
    _refuse_field(dataset, field)
    documents, part = named_documents(dataset, split)
    return _text(dataset, part, lambda: (line_feeds(document, marks) for document in documents), JOIN, marks, fields)


def _records(dataset: str, split: str, marks: Marks) -> tuple[str, Callable[[], Records] | None]:
    """The split that is read, and a function that reads the records; None for a source without records."""
    suffix, path = suffix_of(dataset), Path(dataset).expanduser()
    if suffix == ".jsonl":
        return "all", lambda: jsonl_records(dataset, marks)
    if suffix == ".json":
        return "all", lambda: json_records(dataset, marks)
    if suffix == ".parquet":
        return "all", lambda: parquet_records(dataset)
    if path.is_dir():
        return split, saved_records(dataset, split)
    repository, _, config = dataset.partition(":")
    if suffix != ".txt" and "/" in repository and HUB_ID.fullmatch(repository) and not path.parent.is_dir():
        return split, hub_records(dataset, (repository, config) if config else (repository,), split)
    return split, None


def _text(
    name: str, split: str, documents: Callable[[], Iterator[str]], join: str, marks: Marks, fields: Fields
) -> Text:
    digest, characters, blank = hashlib.sha256(), 0, True
    parts = documents()
    first = next(parts, "")  # the first record decides which field is read
    join = "" if fields.template is not None else join
    try:
        for piece in _joined(itertools.chain([first], parts), join):
            digest.update(piece.encode())
            characters += len(piece)
            blank = blank and not piece.strip()
    except UnicodeEncodeError as error:
        raise NestQuantError(
            f"{name} has half of a surrogate pair ({error.object[error.start]!a}), which is no character",
            NOT_READ,
            "write the text anew from its source",
        ) from error
    if blank:
        raise NestQuantError(f"{name} holds no text", NOT_READ, "give a file with text in it")
    if fields.template is not None:
        logger.info("%s: the messages of field '%s' are read through the chat template", name, fields.field)
    if marks.crlf:  # with \r as tokens perplexity would shift by percents
        logger.info("%s has CRLF line ends, which are read as LF", name)
    if marks.byte_order_mark:
        logger.info("%s begins with a byte order mark, which is left out", name)
    return Text(
        name,
        split,
        documents,
        join,
        digest.hexdigest(),
        characters,
        "CRLF, read as LF" if marks.crlf else "LF",
        marks.byte_order_mark,
        fields.field,
        fields.template,
    )


def _joined(documents: Iterator[str], join: str) -> Iterator[str]:
    for number, document in enumerate(documents):
        if number and join:
            yield join
        yield document


def _refuse_field(dataset: str, field: str | None) -> None:
    if field is not None:
        raise NestQuantError(f"{dataset} has no fields", NOT_READ, "leave out --text-field")
