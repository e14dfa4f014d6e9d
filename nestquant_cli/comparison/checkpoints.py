"""The packed checkpoints of a comparison: made one after the other, and reused where they are finished already."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.errors import NestQuantError
from ..base.progress import logger
from ..calibration.store import remove_calibration
from ..checkpoint.manifest import CONFIG
from ..checkpoint.read import check_checkpoint, read_quantization_config
from ..evaluation.perplexity import check_fit
from ..models.source import Source
from ..pipeline.examine import examine
from ..pipeline.original_model import open_original
from ..pipeline.quantize import calibrate, quantize
from ..pipeline.run_inputs import run_inputs
from .entries import NOT_COMPARED, Entry, calibrations
from .saved_scores import ComparisonState

_WORDS = ("model", "base_commit")  # of two folders or commits with the same weights the checkpoint is the same
if TYPE_CHECKING:
    from torch import Tensor


def make_checkpoints(
    source: Source,
    entries: Sequence[Entry],
    keys: dict[str, Any],
    folder: Path,
    device: str,
    state: ComparisonState,
    dtype: str = "auto",
) -> None:
    """Quantizes what is not quantized yet, each entry into `folder/NAME`; entries that can share a calibration do.

    Args:
        source: the original model.
        entries: the recipes.
        keys: what determines each checkpoint, by name, as `run_keys` returns it.
        folder: output folder of the comparison.
        device: a torch device.
        state: run of the comparison; its steps `runs/NAME` get the seconds, those of the calibration included, and the
            peak memory in bytes.
        dtype: dtype that the model is loaded in.

    Raises:
        NestQuantError: a folder holds a quantization by another recipe or of another model; see `quantize`.
    """
    open_entries = [entry for entry in entries if not _finished(folder / entry.name, keys[entry.name])]
    for entry in entries:
        if entry not in open_entries:
            logger.info("%s: finished before", entry.name)
    for number, (recipe, members) in enumerate(calibrations(open_entries)):
        stored, spent = None, 0.0
        if len(members) > 1:
            stored, start = folder / f"calibration-{number}", time.monotonic()
            names = ", ".join(entry.name for entry in members)
            logger.info("one calibration for %s", names)
            if not (stored / "calibration.json").is_file():
                calibrate(source, recipe, stored, device, dtype=dtype)
            spent = time.monotonic() - start
        for entry in members:
            logger.info("quantizing by %s", entry.name)
            report = quantize(source, entry.recipe, folder / entry.name, device, stored, dtype=dtype)
            taken = {"seconds": round(report["seconds"] + spent, 1), "peak_memory_bytes": report["peak_memory_bytes"]}
            state.put(f"runs/{entry.name}", keys[entry.name], taken)
        if stored is not None:
            remove_calibration(stored)


def run_keys(source: Source, entries: Sequence[Entry], device: str, dtype: str, windows: "Tensor") -> dict[str, Any]:
    """What determines each checkpoint, by name, as its config.json has it: settings, model and calibration text.

    Raises:
        NestQuantError: a recipe cannot be used for the model, or the model cannot take `windows`, which are scored.
    """
    for entry in entries[1:]:
        examine(source, entry.recipe, dtype)
    original = open_original(source, device, dtype, entries[0].recipe)
    check_fit(original.weights.model, None, windows)
    keys = {}
    for entry in entries:
        key = entry.recipe.to_dict() | run_inputs(original, entry.recipe).origin
        keys[entry.name] = json.loads(json.dumps(key))
    return keys


def _finished(folder: Path, key: Any) -> bool:
    if not (folder / CONFIG).is_file():
        return False
    recipe = read_quantization_config(folder).get("recipe")
    recipe = recipe if isinstance(recipe, dict) else {}
    differing = [name for name in {**key, **recipe} if name not in _WORDS and recipe.get(name) != key.get(name)]
    if differing:
        raise NestQuantError(
            f"{folder} is a finished quantization with another {differing[0]}",
            NOT_COMPARED,
            "remove it, or choose another --output",
        )
    check_checkpoint(folder)
    return True
