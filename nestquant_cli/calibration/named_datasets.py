"""Data sets that are known by a name: WikiText-2, C4, the demo, and any data set of the Hugging Face Hub."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..base.errors import NestQuantError
from ..base.names import nearest
from .demo_text import demo_documents
from .text_files import NOT_READ, Records

WIKITEXT2 = ("Salesforce/wikitext", "wikitext-2-raw-v1")
C4 = "allenai/c4"
C4_FILES = {"train": "en/c4-train.00000-of-01024.json.gz", "validation": "en/c4-validation.00000-of-00008.json.gz"}
C4_DOCUMENTS = {"train": 8000, "validation": 1100}  # first documents: 4 million and half a million tokens


def named_documents(dataset: str, split: str) -> tuple[list[str], str]:
    """The documents of a data set with a name of its own, and the split that they are from.

    Raises:
        NestQuantError: there is no data set of that name, or no connection.
    """
    if dataset == "demo":
        part = "train" if split == "train" else "test"
        return demo_documents(part), part
    if dataset == "wikitext2":
        return _download("wikitext2", WIKITEXT2, split), split
    if dataset == "c4":
        part = "train" if split == "train" else "validation"
        return _download("c4", (C4,), part), part
    raise NestQuantError(
        f"'{dataset}' is not a data set that is known here",
        NOT_READ,
        nearest(
            dataset,
            ("wikitext2", "c4", "demo"),
            otherwise="use wikitext2, c4, demo, a .txt, .jsonl, .json or .parquet file, a folder of save_to_disk, or "
            "ORG/NAME of the Hub",
        ),
    )


def hub_records(name: str, repository: tuple[str, ...], split: str) -> Callable[[], Records]:
    """A function that reads the rows of a data set of the Hub, which `datasets` downloads into its cache."""
    with _from_hub(name):
        import datasets

        rows = datasets.load_dataset(*repository, split=split)
    return lambda: ((f"{name} row {number}", row) for number, row in enumerate(rows))


def _download(name: str, repository: tuple[str, ...], split: str) -> list[str]:
    arguments: dict[str, Any] = {"split": split}
    if name == "c4":
        arguments |= {"data_files": {split: C4_FILES[split]}, "streaming": True}
    with _from_hub(name):
        import datasets

        rows = datasets.load_dataset(*repository, **arguments)
        rows = rows.take(C4_DOCUMENTS[split]) if name == "c4" else rows
        return [row["text"] for row in rows]


@contextmanager
def _from_hub(name: str) -> Iterator[None]:
    """Turns whatever a download raises into a NestQuantError of one line."""
    from ..models.hub import cache_only_when_unreachable, reason_of, unreachable

    try:
        with cache_only_when_unreachable():
            yield
    except Exception as error:  # the Hub's client, its transport and the data reader each have errors of their own
        raise NestQuantError(
            f"{name} cannot be read from the Hugging Face Hub ({unreachable() or reason_of(error)})",
            NOT_READ,
            "check the connection, or give a local .txt or .jsonl file with --dataset",
        ) from error
