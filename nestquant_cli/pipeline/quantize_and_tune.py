"""Quantizes and tunes in one run. The untuned checkpoint is part of the run's state and is removed at the end."""

import dataclasses
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ..base.errors import NestQuantError
from ..base.processor import machine
from ..checkpoint.manifest import CONFIG
from ..checkpoint.output import Output
from ..checkpoint.read import read_quantization_config
from ..models.source import Source
from ..parallel.team import team
from ..tuning.held_out import TuneText
from ..tuning.settings import TuneSettings
from ..tuning.tune import tune
from .finish import run_figures, versions
from .quantize import quantize
from .recipe import Recipe

_UNTUNED = "untuned"


def quantize_and_tune(
    source: Source,
    recipe: Recipe,
    folder: Path,
    device: str,
    calibration: Path | None = None,
    resume: bool = True,
    explicit: Collection[str] = (),
    dtype: str = "auto",
    **limits: int,
) -> dict[str, Any]:
    """Quantizes a model, then tunes the result if the recipe has `tune`.

    Args:
        source: the model.
        recipe: settings of the quantization and of the tuning.
        folder: output folder of the tuned checkpoint.
        device: device to compute on.
        calibration: folder with a stored calibration; None calibrates on the way.
        resume: whether to continue an unfinished run of the same key.
        explicit: settings of the recipe that the user gave by name.
        dtype: dtype to load the model in; "auto" is the model's own.
        limits: `budget` of `pipeline.quantize.quantize`.

    Returns:
        the report, with the seconds and the peak memory of this process added.

    Raises:
        NestQuantError: the model cannot be quantized, the result cannot be tuned, or several processes were started,
            which cannot share a tuning.
    """
    if recipe.tune is None:
        return quantize(source, recipe, folder, device, calibration, resume, explicit, dtype=dtype, **limits)
    start = time.monotonic()
    if team().size > 1:
        raise NestQuantError(
            f"{team().size} processes cannot tune together", "nothing was quantized", "tune the result with one process"
        )
    key = {"recipe": recipe.to_dict(), "model": source.name, "calibration": calibration and str(calibration)}
    key |= {"dtype": dtype, "versions": versions(), **machine(device)}
    with Output(folder, key, 1, resume) as output:
        finished = output.finished()
        if finished is not None:
            return finished | run_figures(start)
        untuned = output.state.work / _UNTUNED
        plain = dataclasses.replace(recipe, tune=None)
        if not (untuned / CONFIG).is_file():
            try:
                quantize(source, plain, untuned, device, calibration, True, explicit, dtype=dtype, **limits)
            except NestQuantError:
                if not untuned.exists():
                    output.state.give_up()
                raise
        settings = TuneSettings.from_dict(recipe.tune)
        read = read_quantization_config(untuned)["recipe"]
        text = TuneText(read["dataset"], read["text_field"], read["bos"])
        report = tune(untuned, source, settings, folder, device, text, recipe.seed, output=output)
        return report | run_figures(start)
