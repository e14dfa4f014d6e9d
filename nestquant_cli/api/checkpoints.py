"""Makes checkpoints from Python: `quantize`, `calibrate` and `tune`."""

from pathlib import Path
from typing import Any

from ..calibration.hidden_states import DEFAULT_BUDGET
from ..models.device_choice import pick_device
from ..models.load import check_dtype
from ..parallel.team import joined
from ..pipeline.quantize import calibrate as run_calibration
from ..pipeline.quantize_and_tune import quantize_and_tune
from ..pipeline.recipe import SIXTEEN, Recipe
from ..storage.default_folders import calibration_folder, packed_folder, tuned_folder
from ..tuning.held_out import TuneText
from ..tuning.settings import TuneSettings
from ..tuning.tune import tune as run_tuning
from .arguments import bytes_of, recipe_of, source_of


def quantize(
    model: str | Path,
    output: str | Path | None = None,
    *,
    bits: float | None = None,
    dataset: str | None = None,
    samples: int | None = None,
    seqlen: int | None = None,
    recipe: str | Path | Recipe | None = None,
    calibration: str | Path | None = None,
    resume: bool = True,
    memory_budget: int | str = DEFAULT_BUDGET,
    dtype: str = "auto",
    device: str = "auto",
    revision: str | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Quantizes a model into a packed checkpoint; the same call again resumes an interrupted run.

    Args:
        model: name of the original model.
        output: folder of the checkpoint, which must not exist, be empty, or hold the same run unfinished; None is
            `MODEL-nestquant-w4a4kv4` in the working folder, with the bits in its name.
        bits: bits of weights, activations, keys and values, 2 to 8 in steps of 1/8; 4 where no bits are given.
        dataset: calibration text: "wikitext2", "c4", "demo", a text file or a data set of the Hub.
        samples: calibration windows, 128 by default.
        seqlen: tokens in a calibration window, 2048 by default.
        recipe: a YAML file such as configs/w4.yaml, over which the other settings win, or a Recipe, which has them all.
        calibration: folder that `calibrate` wrote; None calibrates on the way.
        resume: False starts an unfinished run over.
        memory_budget: hidden states that may stay in memory, in bytes or as "2GiB"; the others go to the disk.
        dtype: dtype that the model is loaded in: "auto" is that of its files, else "float32", "bfloat16" or "float16".
        device: a torch device; "auto" is the GPU where there is one, else the CPU.
        revision: branch, tag or commit of a model on the Hub.
        settings: any other field of a Recipe by name, such as weight_bits, rotation or seed. Bits of one part given
            alone leave the other parts at 16.

    Returns:
        the report, as in quantization_report.json, with "folder", "seconds" and "peak_memory_bytes" added.

    Raises:
        NestQuantError: an unknown or unusable setting, a model that cannot be quantized, a folder that holds something
            else, or a disk that is too small.

    Example:
        >>> report = nestquant_cli.quantize("demo", "demo-w4", weight_bits=4, dataset="demo", samples=8)
        >>> report["bits"]
        {'weight': 4.0, 'act': 16.0, 'kv': 16.0}
    """
    settings |= {"bits": bits, "dataset": dataset, "samples": samples, "seqlen": seqlen}
    chosen, named = recipe_of(recipe, settings, SIXTEEN)
    check_dtype(dtype)
    budget = bytes_of(memory_budget)
    with joined(pick_device(device)) as place:
        source = source_of(model, revision)
        folder = Path(output) if output is not None else packed_folder(source.name, chosen.tag())
        stored = None if calibration is None else Path(calibration)
        report = quantize_and_tune(source, chosen, folder, place, stored, resume, named, dtype, budget=budget)
    return report | {"folder": str(folder)}


def calibrate(
    model: str | Path,
    output: str | Path | None = None,
    *,
    dataset: str | None = None,
    samples: int | None = None,
    seqlen: int | None = None,
    recipe: str | Path | Recipe | None = None,
    memory_budget: int | str = DEFAULT_BUDGET,
    dtype: str = "auto",
    device: str = "auto",
    revision: str | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Measures the statistics of a model's activations once, for several calls of `quantize` with `calibration=`.

    Args:
        model: name of the original model.
        output: folder of the calibration; None is `MODEL-calibration` in the working folder.
        dataset, samples, seqlen, recipe, memory_budget, dtype, device, revision: as `quantize` takes them.
        settings: any other field of a Recipe by name. Those of the weights do not matter, unless rotations are learned.

    Returns:
        what calibration.json says of the model and the text, with "folder" added.

    Raises:
        NestQuantError: an unknown or unusable setting, a model that cannot be quantized, or a folder that holds
            something else.

    Example:
        >>> calibration = nestquant_cli.calibrate("demo", "demo-calibration", dataset="demo", samples=8)
        >>> for bits in (3, 4):
        ...     nestquant_cli.quantize("demo", weight_bits=bits, act_bits=4, kv_bits=4, calibration="demo-calibration")
    """
    settings |= {"dataset": dataset, "samples": samples, "seqlen": seqlen}
    chosen, _ = recipe_of(recipe, settings, Recipe.weight_bits)
    check_dtype(dtype)
    budget = bytes_of(memory_budget)
    with joined(pick_device(device)) as place:
        source = source_of(model, revision)
        folder = Path(output) if output is not None else calibration_folder(source.name)
        about = run_calibration(source, chosen, folder, place, budget, dtype)
    return about | {"folder": str(folder)}


def tune(
    checkpoint: str | Path,
    original: str | Path,
    output: str | Path | None = None,
    *,
    dataset: str = "wikitext2",
    text_field: str | None = None,
    bos: str = "default",
    seed: int = 0,
    resume: bool = True,
    device: str = "auto",
    revision: str | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Tunes row scales, gains of norms and biases of a packed checkpoint into a new one; its words and bits stay.

    Args:
        checkpoint: folder of the packed checkpoint, which is not changed.
        original: name of the model that it was made from.
        output: folder of the result; None is `CHECKPOINT-tuned` in the working folder.
        dataset: text to tune on: "wikitext2", "c4", "demo", a text file or a data set of the Hub.
        text_field: field of the data set's records; None takes "text", or else "messages".
        bos: what windows begin with: "default", "each" or "none".
        seed: seed of the order of the windows and of the choice of those held out.
        resume: False starts an unfinished run over.
        device: a torch device; "auto" is the GPU where there is one, else the CPU.
        revision: branch, tag or commit of a model on the Hub.
        settings: fields of TuneSettings by name: steps, seqlen, batch, rate, held_out and checks.

    Returns:
        the report, as in quantization_report.json, with "folder" and "seconds" added; "tuning" has the losses.

    Raises:
        NestQuantError: an unknown or unusable setting, a checkpoint that is tuned already or was made from another
            model, or a text that is too short.

    Example:
        >>> report = nestquant_cli.tune("demo-w4", "demo", "demo-w4-tuned", dataset="demo", steps=50)
        >>> report["tuning"]["loss_after"] <= report["tuning"]["loss_before"]
        True
    """
    checkpoint = Path(checkpoint)
    folder = Path(output) if output is not None else tuned_folder(checkpoint)
    text, chosen = TuneText(dataset, text_field, bos), TuneSettings.from_dict(settings)
    source, place = source_of(original, revision), pick_device(device)
    return run_tuning(checkpoint, source, chosen, folder, place, text, seed, resume) | {"folder": str(folder)}
