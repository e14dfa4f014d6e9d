"""Quantizes a model into a packed checkpoint, or calibrates it for that: the two runs, from start to end.

A run opens the model, reads the calibration text, refuses what cannot work, and only then creates the output folder.
Then it measures, rounds and writes one decoder layer after the other. All processes of a team run the same code: each
calibrates on its share of the windows and rounds its share of a layer's matrices, and rank 0 writes.
"""

import dataclasses
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ..base.errors import NestQuantError
from ..base.memory import reuse_blocks
from ..base.progress import track
from ..calibration.hidden_states import DEFAULT_BUDGET
from ..calibration.store import FILE, Calibration
from ..calibration.store_writer import CalibrationWriter
from ..calibration.windows import Windows
from ..checkpoint.manifest import CONFIG
from ..checkpoint.output import Output
from ..models.source import Source
from ..models.structure import linears
from ..parallel.team import team
from ..storage.output_checks import refuse_full_disk
from ..storage.resume import WORK, refuse_foreign
from .finish import run_figures, write_rest
from .mixed_rates import mixed_rates
from .original_model import OriginalModel, open_original
from .output_gradients import output_gradients, refuse_metric
from .plan import count_sizes
from .quantize_layers import quantize_layers
from .recipe import Recipe
from .run_inputs import refuse_stored, run_inputs
from .statistics_source import StatisticsSource


@reuse_blocks()
def calibrate(
    source: Source, recipe: Recipe, folder: Path, device: str, budget: int = DEFAULT_BUDGET, dtype: str = "auto"
) -> dict[str, Any]:
    """Calibrates a model and saves Hessians, noise and codes. An unfinished calibration of the same is continued.

    Args:
        source: the model.
        recipe: settings of the quantization to calibrate for.
        folder: output folder.
        device: device to compute on.
        budget: bytes of hidden states that may stay in memory; the rest goes to a file.
        dtype: dtype to load the model in; "auto" is the model's own.

    Returns:
        the contents of calibration.json without the layers.

    Raises:
        NestQuantError: the recipe is sequential, the model or its text cannot be used, or the folder holds something
            else.
    """
    group = team()
    refuse_stored(recipe)
    group.run_on_rank0(lambda: refuse_foreign(folder, FILE))
    original = open_original(source, device, dtype, recipe)
    recipe = dataclasses.replace(recipe, kv_skip_layers=None)  # others may use the calibration
    inputs = run_inputs(original, recipe)
    about = inputs.about | inputs.text | {"dtype": dtype}
    writer = group.run_on_rank0(lambda: CalibrationWriter(folder, about, inputs.circumstances))
    with writer:
        done = group.run_on_rank0(lambda: [writer.done(index) for index in range(original.depth)])
        stream = StatisticsSource(original, recipe, None, inputs.windows, folder, budget).layers(done)
        try:
            for index, layer in enumerate(track(stream, "calibrating layers", total=original.depth)):
                if layer is not None:
                    writer.write(index, layer, linears(original.weights.decoder.layers[index]).keys(), group)
                    done[index] = True
            group.run_on_rank0(lambda: writer.finish(original.depth))
        except NestQuantError:
            if group.leads and not any(done):
                writer.state.give_up()
            raise
    return about


@reuse_blocks()
def quantize(
    source: Source,
    recipe: Recipe,
    folder: Path,
    device: str,
    calibration: Path | None = None,
    resume: bool = True,
    explicit: Collection[str] = (),
    budget: int = DEFAULT_BUDGET,
    dtype: str = "auto",
) -> dict[str, Any]:
    """Quantizes a model into a packed checkpoint.

    Args:
        source: the model.
        recipe: settings of the quantization.
        folder: output folder.
        device: device to compute on.
        calibration: folder with a stored calibration; None calibrates on the way.
        resume: whether to continue an unfinished run of the same key; otherwise it is started over.
        explicit: settings of the recipe that the user gave by name. With a stored calibration, those of the text must
            be the calibration's.
        budget: bytes of hidden states that may stay in memory; the rest goes to a file.
        dtype: dtype to load the model in, and of the tensors that are not quantized; "auto" is the model's own.

    Returns:
        the contents of quantization_report.json, with the seconds and the peak memory of this process added.

    Raises:
        NestQuantError: the model, its text or the stored calibration cannot be used, the disk is too small, or the
            folder holds something else.
    """
    start = time.monotonic()
    group = team()
    group.run_on_rank0(lambda: refuse_foreign(folder, CONFIG))
    stored = None if calibration is None else Calibration(calibration)
    original = open_original(source, device, dtype, recipe)
    inputs = run_inputs(original, recipe, stored, explicit)
    group.run_on_rank0(lambda: refuse_metric(original, recipe, group))
    key = {"recipe": recipe.to_dict(), **inputs.about, **inputs.text, **inputs.stored, **inputs.circumstances}
    group.run_on_rank0(lambda: _refuse_full_disk(original, recipe, folder, inputs.windows, budget))
    output = group.run_on_rank0(lambda: Output(folder, key, original.depth + 1, resume))
    with output:
        finished = group.run_on_rank0(output.finished)
        if finished is not None:
            return finished | run_figures(start)
        try:
            rates = mixed_rates(original, recipe, inputs.text, output, group)
            statistics = StatisticsSource(original, recipe, stored, inputs.windows, folder, budget, rates.inputs)
            gradients = output_gradients(original, recipe, inputs.text, folder / WORK, budget)
            parts = quantize_layers(statistics, output, group, rates.words, gradients)
            report = group.run_on_rank0(lambda: write_rest(output, original, recipe, parts, inputs.origin))
        except NestQuantError:
            if group.leads:
                output.give_up()
            raise
    return report | run_figures(start)


def _refuse_full_disk(
    original: OriginalModel, recipe: Recipe, folder: Path, windows: Windows | None, budget: int
) -> None:
    """Raises NestQuantError when the checkpoint and the hidden states beyond the budget do not fit the disk."""
    sizes = count_sizes(original.weights.model, recipe)
    there = sum(path.stat().st_size for path in folder.glob("*.safetensors")) if folder.is_dir() else 0
    spilled = 0 if windows is None else max(0, sizes.hidden_bytes - budget)
    refuse_full_disk(folder, max(0, sizes.file_bytes - there) + spilled, "the checkpoint")
