"""From a model's name to a packed checkpoint: open, calibrate and quantize layer by layer, write.

All processes of a team run the same code: each calibrates on its share of the windows and rounds its share of a layer's
matrices, and the first one writes.
"""

import time
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from ..base.errors import NestQuantError
from ..base.memory import return_blocks, reuse_blocks
from ..base.progress import track
from ..calibration.hidden_states import DEFAULT_BUDGET
from ..calibration.statistics import LayerStatistics
from ..calibration.store import FILE, Calibration, CalibrationWriter
from ..calibration.windows import Windows
from ..checkpoint.manifest import CONFIG
from ..checkpoint.output import Output
from ..models.source import Source
from ..models.structure import linears
from ..parallel.team import Team, team
from ..quantization.layer import QuantizedMatrix
from ..storage.files import sha256_file
from ..storage.output_checks import refuse_full_disk
from ..storage.resume import refuse_foreign
from .finish import run_figures, write_rest
from .layer_matrices import quantize_matrices
from .layer_part import LayerPart, part_of
from .mixed_rates import mixed_words
from .original_model import (
    TEXT_KEYS,
    OriginalModel,
    about_model,
    circumstances,
    open_original,
    origin_of,
    read_windows,
    refuse_other_caches,
    text_of,
)
from .plan import make_plan
from .recipe import Recipe
from .sequential_quantizer import SequentialQuantizer
from .statistics_source import StatisticsSource, refuse_stored

_TEXT_SETTINGS = ("dataset", "samples", "seqlen", "bos", "text_field")


@reuse_blocks()
def calibrate(
    source: Source, recipe: Recipe, folder: Path, device: str, budget: int = DEFAULT_BUDGET, dtype: str = "auto"
) -> dict[str, Any]:
    """Calibrates a model and saves Hessians, noise and codes; goes on with an unfinished calibration of the same.

    Args:
        source: the model.
        recipe: what to calibrate for.
        folder: the output.
        device: where to compute.
        budget: bytes of hidden states that may stay in memory.
        dtype: that the model is loaded in; "auto" is its own.

    Returns:
        what calibration.json says of it, less the layers.
    """
    group = team()
    refuse_stored(recipe)
    group.run_on_rank0(lambda: refuse_foreign(folder, FILE))
    original = open_original(source, device, dtype)
    refuse_other_caches(original, recipe)
    windows = read_windows(original, recipe)
    about = about_model(original, recipe, group) | text_of(windows) | {"dtype": dtype}
    writer = group.run_on_rank0(lambda: CalibrationWriter(folder, about, circumstances(original)))
    with writer:
        done = group.run_on_rank0(lambda: [writer.done(index) for index in range(original.depth)])
        stream = StatisticsSource(original, recipe, None, windows, folder, budget).layers(done)
        try:
            for index, layer in enumerate(track(stream, "calibrating layers", total=original.depth)):
                if layer is not None:
                    group.run_on_rank0(partial(writer.write, index, layer))
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
        recipe: what to quantize and how.
        folder: the output.
        device: where to compute.
        calibration: a folder of `calibrate`; None calibrates on the way.
        resume: go on with an unfinished run of the same key.
        explicit: settings of the recipe that the user asked for by name; those of the text must be the calibration's.
        budget: bytes of hidden states that may stay in memory.
        dtype: that the model is loaded in, and of what is not quantized in the checkpoint; "auto" is the model's own.

    Returns:
        the report, as in quantization_report.json, with the seconds and the peak memory of this process added.

    Raises:
        NestQuantError: see the functions called.
    """
    start = time.monotonic()
    group = team()
    group.run_on_rank0(lambda: refuse_foreign(folder, CONFIG))
    stored = None if calibration is None else Calibration(calibration)
    original = open_original(source, device, dtype)
    refuse_other_caches(original, recipe)
    about = about_model(original, recipe, group)
    windows, text, calibrated = _text(original, recipe, about, stored, explicit)
    group.run_on_rank0(lambda: _refuse_full_disk(original, recipe, folder, windows, budget))
    key = {"recipe": recipe.to_dict(), **about, **text, **calibrated, **circumstances(original)}
    output = group.run_on_rank0(lambda: Output(folder, key, original.depth + 1, resume))
    with output:
        finished = group.run_on_rank0(output.finished)
        if finished is not None:
            return finished | run_figures(start)
        try:
            words = mixed_words(original, recipe, text, output, group)
            measuring = StatisticsSource(original, recipe, stored, windows, folder, budget)
            parts = _quantize_layers(measuring, output, group, words)
            origin = origin_of(source, about, text, dtype)
            report = group.run_on_rank0(
                lambda: write_rest(output, original.weights, original.tokenizer, recipe, parts, origin)
            )
        except NestQuantError:
            if group.leads:
                output.give_up()
            raise
    return report | run_figures(start)


def _text(
    original: OriginalModel,
    recipe: Recipe,
    about: dict[str, Any],
    stored: Calibration | None,
    explicit: Collection[str],
) -> tuple[Windows | None, dict[str, Any], dict[str, Any]]:
    """The windows to calibrate on, none where that was done; what is recorded of the text; the hash of what is stored.

    Raises:
        NestQuantError: the stored calibration is of another model, or was made with other settings.
    """
    if stored is None:
        windows = read_windows(original, recipe)
        return windows, text_of(windows), {}
    refuse_stored(recipe)
    asked = {name: getattr(recipe, name) for name in _TEXT_SETTINGS if name in explicit}
    stored.check(about | asked)
    text = {key: stored.about.get(key) for key in TEXT_KEYS}
    return None, text, {"calibration_sha256": sha256_file(stored.folder / FILE)}


def _quantize_layers(
    measuring: StatisticsSource, output: Output, group: Team, words: dict[str, int] | None
) -> list[LayerPart]:
    """Writes every layer that is not written yet; the parts of all."""
    original, recipe = measuring.original, measuring.recipe
    depth = original.depth
    written = group.run_on_rank0(lambda: [output.done(index) for index in range(depth)])
    parts = [LayerPart.from_dict(done) if done else None for done in written]
    sequential = (
        SequentialQuantizer(original, recipe, output, parts, group, words, measuring.hidden)
        if recipe.sequential
        else None
    )
    stream = measuring.layers(
        [part is not None for part in parts], None if sequential is None else sequential.callbacks
    )
    for index, statistics in enumerate(track(stream, "quantizing layers", total=depth)):
        if parts[index] is None:
            assert statistics is not None
            packed = None if sequential is None else sequential.take()
            tensors, part = quantize_layer(original, index, statistics, recipe, group, words, packed)
            group.run_on_rank0(partial(output.write, index, tensors, part.to_dict()))
            parts[index] = part
            del tensors, statistics, packed  # nothing of this layer is there while the next one is measured
            return_blocks()
    return [part for part in parts if part is not None]


def quantize_layer(
    original: OriginalModel,
    index: int,
    statistics: LayerStatistics,
    recipe: Recipe,
    group: Team,
    words: dict[str, int] | None = None,
    packed: dict[str, QuantizedMatrix] | None = None,
) -> tuple[dict[str, Tensor], LayerPart]:
    """Packs one decoder layer: its tensors by full name, and what is said of it.

    Args:
        original: the model.
        index: of the layer.
        statistics: of its inputs.
        recipe: what to quantize and how.
        group: of processes, all of which call this.
        words: see `quantize_matrices`.
        packed: its matrices by name in the layer where they are quantized already.
    """
    prefix = original.weights.decoder.layer_name(index)
    layer = original.weights.decoder.layers[index]
    with original.weights.layer(index):
        if packed is None:
            packed = quantize_matrices(linears(layer), statistics, recipe, prefix, group, words)
        return part_of(prefix, layer, statistics, packed, recipe)


def _refuse_full_disk(
    original: OriginalModel, recipe: Recipe, folder: Path, windows: Windows | None, budget: int
) -> None:
    """Raises NestQuantError when the checkpoint and the hidden states beyond the budget do not fit the disk."""
    plan = make_plan(original.source, recipe, original.weights.model, budget)
    there = sum(path.stat().st_size for path in folder.glob("*.safetensors")) if folder.is_dir() else 0
    spilled = 0 if windows is None else max(0, plan.hidden_bytes - budget)
    refuse_full_disk(folder, max(0, plan.file_bytes - there) + spilled, "the checkpoint")
