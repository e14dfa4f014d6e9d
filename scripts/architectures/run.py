"""One case from its name to its row: every stage in turn, here or in a child."""

import importlib
import pkgutil
import re
import shutil
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers

import nestquant_cli

from .children import Note, in_child, read_notes
from .stages import ORIGINAL, PACKED, Place, Row, quantized

ALL = {**ORIGINAL, "quantized": quantized, **PACKED}
VERSIONS = ", ".join(f"{m.__name__} {m.__version__}" for m in (nestquant_cli, transformers, torch))
Runner = Callable[[Place, Row], None]  # fills a row


def in_this_process(place: Place, row: Row) -> None:
    """Runs all stages here, as tests do."""
    _rest(place, row, lambda label, result: None)


def in_children(timeout: float) -> Runner:
    """Runs the stages in one child, and those after a stage that killed it in another.

    Args:
        timeout: seconds of a stage.
    """

    def run(place: Place, row: Row) -> None:
        notes = place.folder / "notes.jsonl"
        while label := _next(row):
            died = in_child(partial(_rest, place, dict(row)), notes, timeout)
            row |= read_notes(notes)
            if died:
                row[_next(row) or label] = {"crash": died}

    return run


def run_case(name: str, work: Path, text: Path, run: Runner, keep: bool = False) -> Row:
    """The row of a case.

    Args:
        name: of the case.
        work: folder for the files of cases.
        text: file that calibrates and is scored.
        run: what runs the stages.
        keep: leave the files.
    """
    begun, row = time.monotonic(), {"name": name, "versions": VERSIONS}
    with _folder(work / re.sub(r"[^\w.-]", "_", name), keep) as folder:
        place = Place(folder)
        shutil.copyfile(text, place.text)
        run(place, row)
    return row | {"seconds": round(time.monotonic() - begun, 1)}


def preload() -> None:
    """Imports what every child needs; nothing is computed and no thread begins, so that forking stays safe."""
    for module in pkgutil.walk_packages(nestquant_cli.__path__, "nestquant_cli."):
        if not any(part in module.name for part in (".gpu", ".vllm", "__main__")):  # a child needs none of these
            importlib.import_module(module.name)
    importlib.import_module("transformers.generation.utils")


def _next(row: Row) -> str | None:
    """The first stage that the row lacks and that can be run; None at the end."""
    if "crash" in row.get("built", {}):
        return None
    labels = list(ORIGINAL) + ["quantized"] + (list(PACKED) if "level" in row.get("quantized", {}) else [])
    return next((label for label in labels if label not in row), None)


def _rest(place: Place, row: Row, note: Note) -> None:
    """Runs the stages that the row lacks, and notes each."""
    while label := _next(row):
        begun = time.monotonic()
        row[label] = _caught(partial(ALL[label], place, row)) | {"seconds": round(time.monotonic() - begun, 2)}
        note(label, row[label])


def _caught(stage: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a stage returns, or its exception."""
    try:
        return stage()
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        return {"crash": f"{type(error).__name__}: {first[:300]}", "said": traceback.format_exc()[-3000:]}


@contextmanager
def _folder(path: Path, keep: bool) -> Iterator[Path]:
    """An empty folder, which goes afterwards."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    yield path
    if not keep:
        shutil.rmtree(path, ignore_errors=True)
