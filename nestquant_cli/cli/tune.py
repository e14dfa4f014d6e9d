"""`nestquant tune`: the continuous parameters of a packed checkpoint, tuned towards the original model."""

from typing import Annotated, Any

import typer

from ..storage.default_folders import tuned_folder
from . import console
from .config import ConfigOption, print_settings
from .options import (
    MODEL_FORMS,
    Bos,
    CheckpointArgument,
    DatasetOption,
    DeviceOption,
    FolderOption,
    RevisionOption,
    SeedOption,
    SeqlenOption,
    TextFieldOption,
    WindowBosOption,
    finite,
)
from .recipe_options import ResumeOption

OriginalOption = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="MODEL",
        help=f"Original model that the checkpoint was made from: {MODEL_FORMS}.",
        show_default=False,
    ),
]
StepsOption = Annotated[int, typer.Option("--steps", min=1, help="Number of optimizer steps.")]
BatchOption = Annotated[int, typer.Option("--batch", min=1, help="Number of windows in each optimizer step.")]
RateOption = Annotated[
    float,
    typer.Option(
        "--rate",
        parser=finite,
        help="Highest learning rate of Adam, reached after a tenth of the steps; it then falls to zero along a cosine.",
    ),
]
HeldOutOption = Annotated[
    int,
    typer.Option(
        "--held-out",
        min=1,
        help="Number of windows kept out of the tuning. The state with the lowest loss on them wins.",
    ),
]
ChecksOption = Annotated[
    int,
    typer.Option(
        "--checks", min=1, help="Number of evaluations on the held-out windows, after the one before the first step."
    ),
]


def tune_checkpoint(
    context: typer.Context,
    checkpoint: CheckpointArgument,
    model: OriginalOption,
    output: FolderOption = None,
    dataset: DatasetOption = "wikitext2",
    text_field: TextFieldOption = None,
    bos: WindowBosOption = Bos.default,
    steps: StepsOption = 400,
    seqlen: SeqlenOption = 512,
    batch: BatchOption = 1,
    rate: RateOption = 0.001,
    held_out: HeldOutOption = 8,
    checks: ChecksOption = 8,
    seed: SeedOption = 0,
    resume: ResumeOption = True,
    device: DeviceOption = "auto",
    revision: RevisionOption = None,
    config: ConfigOption = None,
) -> None:
    """Tune row scales, norm gains and biases of a packed checkpoint towards the original model.

    The packed model, with activations, keys and values quantized, learns the original's next-token distributions on
    calibration text. The packed words and the bits do not change. The result is a new folder. After an interruption,
    the same command continues.
    """
    from ..base.progress import duration
    from ..models.device_choice import pick_device
    from ..models.source import resolve
    from ..tuning.held_out import TuneText
    from ..tuning.settings import TuneSettings
    from ..tuning.tune import tune

    text = TuneText(dataset, text_field, bos.value)
    settings = TuneSettings(steps, seqlen, batch, rate, held_out, checks)
    folder = output if output is not None else tuned_folder(checkpoint)
    console.note(f"tuning {checkpoint} towards {model} for {steps} steps into {folder}")
    print_settings(context)
    report = tune(checkpoint, resolve(model, revision), settings, folder, pick_device(device), text, seed, resume)
    print_tuning(report)
    console.line(f"time: {duration(report['seconds'])}")
    console.print_ending(folder, "eval-ppl", folder, "--baseline", model)


def print_tuning(report: dict[str, Any]) -> None:
    """Prints the KL divergence before and after the tuning that a report of `quantize` or `tune` records, if any."""
    tuning = report.get("tuning")
    if tuning:
        before, after = tuning["loss_before"], tuning["loss_after"]
        console.line(f"tuning: KL from the original on held-out windows {before:.4f} before, {after:.4f} after")
