"""One case from its name to its row: every stage in turn."""

import re
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from .children import directly, in_child
from .stages import ORIGINAL, PACKED, Place, Row, Stage, quantized

Runner = Callable[[str, Stage, Place, Row], dict[str, Any]]


def in_this_process(label: str, stage: Stage, place: Place, row: Row) -> dict[str, Any]:
    """Runs a stage here, as tests do."""
    return directly(partial(stage, place, row))


def in_children(timeout: float) -> Runner:
    """Runs each stage in a process of its own, which ends after `timeout` seconds."""
    return lambda label, stage, place, row: in_child(partial(stage, place, row), place.folder / f"{label}.log", timeout)


def run_case(name: str, work: Path, text: Path, run: Runner, keep: bool = False) -> Row:
    """The row of a case.

    Args:
        name: of the case.
        work: folder for the files of cases.
        text: file that calibrates and is scored.
        run: what runs a stage.
        keep: leave the files.
    """
    place = Place(work / re.sub(r"[^\w.-]", "_", name))
    shutil.rmtree(place.folder, ignore_errors=True)
    place.folder.mkdir(parents=True)
    shutil.copyfile(text, place.text)
    begun = time.monotonic()
    row: Row = {"name": name}
    for label, stage in ORIGINAL.items():
        row[label] = run(label, stage, place, row)
        if "crash" in row[label] and label == "built":
            break
    else:
        row["quantized"] = run("quantized", quantized, place, row)
        if "level" in row["quantized"]:
            for label, stage in PACKED.items():
                row[label] = run(label, stage, place, row)
    if not keep:
        shutil.rmtree(place.folder, ignore_errors=True)
    return row | {"seconds": round(time.monotonic() - begun, 1)}


def preload() -> None:
    """Imports what every child needs; nothing is computed, so that forking stays safe."""
    import nestquant_cli.checkpoint.inspect
    import nestquant_cli.checkpoint.verify
    import nestquant_cli.cli.main
    import nestquant_cli.evaluation.measure_perplexity
    import nestquant_cli.generation
    import nestquant_cli.pipeline.quantize  # noqa: F401
