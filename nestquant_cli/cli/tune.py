"""`nestquant tune`: the continuous parameters of a packed checkpoint, tuned towards the original model."""

from pathlib import Path
from typing import Annotated, Any

import typer

from . import console
from .config import ConfigOption, print_settings
from .options import (
    MODEL_HELP,
    Bos,
    CheckpointArgument,
    DatasetOption,
    DeviceOption,
    FolderOption,
    RevisionOption,
    SeedOption,
    TextFieldOption,
    WindowBosOption,
    finite,
)

OriginalOption = Annotated[
    str, typer.Option("--model", metavar="MODEL", help=f"The model it was made from. {MODEL_HELP}", show_default=False)
]
StepsOption = Annotated[int, typer.Option("--steps", min=1, help="Steps of the optimizer.")]
SeqlenOption = Annotated[int, typer.Option("--seqlen", min=2, help="Tokens in each window.")]
BatchOption = Annotated[int, typer.Option("--batch", min=1, help="Windows in a step.")]
RateOption = Annotated[float, typer.Option("--rate", parser=finite, help="Highest learning rate.")]
HeldOutOption = Annotated[int, typer.Option("--held-out", min=1, help="Held-out windows, which choose the best state.")]
ChecksOption = Annotated[int, typer.Option("--checks", min=1, help="Evaluations on the held-out windows.")]
ResumeOption = Annotated[
    bool, typer.Option("--resume/--no-resume", help="Resume an interrupted run of the same command.")
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
    """Tune row scales, gains of norms and biases of a packed checkpoint towards the original; its words stay.

    The packed model, with rounded activations, keys and values, learns the next-token distributions of the original on
    calibration text. The bits do not change. The result is a new folder; the same command goes on after an
    interruption.
    """
    from ..base.progress import duration
    from ..models.device import pick_device
    from ..models.source import resolve
    from ..tuning.held_out import TuneText
    from ..tuning.settings import TuneSettings
    from ..tuning.tune import tune

    text = TuneText(dataset, text_field, bos.value)
    settings = TuneSettings(steps, seqlen, batch, rate, held_out, checks)
    folder = output if output is not None else Path(f"{checkpoint.absolute().name}-tuned")
    console.note(f"tuning {checkpoint} towards {model} for {steps} steps into {folder}")
    print_settings(context)
    report = tune(checkpoint, resolve(model, revision), settings, folder, pick_device(device), text, seed, resume)
    print_tuning(report)
    console.line(f"time: {duration(report['seconds'])}")
    console.ending(folder, "eval-ppl", folder, "--baseline", model)


def print_tuning(report: dict[str, Any]) -> None:
    """Prints what a report says of the tuning, if there was one."""
    tuning = report.get("tuning")
    if tuning:
        before, after = tuning["loss_before"], tuning["loss_after"]
        console.line(f"tuning: KL from the original on held-out windows {before:.4f} before, {after:.4f} after")
