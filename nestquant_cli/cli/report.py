"""`nestquant report`: a packed checkpoint as one HTML page with pictures."""

from pathlib import Path
from typing import Annotated

import typer

from . import console
from .config import ConfigOption, print_settings
from .generate import NewTokensOption
from .options import (
    BaselineOption,
    CheckpointArgument,
    DatasetOption,
    DeviceOption,
    Dtype,
    DtypeOption,
    FolderOption,
    Resident,
    ResidentOption,
    SeedOption,
    SeqlenOption,
    SplitOption,
    TextFieldOption,
)

WindowsOption = Annotated[
    int, typer.Option("--max-windows", min=1, help="Number of windows to score, from the start of the text.")
]
PromptOption = Annotated[
    str, typer.Option("--prompt", help="Text that the models continue as a sample; '' leaves the sample out.")
]


def report_checkpoint(
    context: typer.Context,
    checkpoint: CheckpointArgument,
    baseline: BaselineOption = None,
    output: FolderOption = None,
    dataset: DatasetOption = "wikitext2",
    split: SplitOption = "test",
    text_field: TextFieldOption = None,
    seqlen: SeqlenOption = 2048,
    max_windows: WindowsOption = 8,
    prompt: PromptOption = "The capital of France is",
    max_new_tokens: NewTokensOption = 48,
    resident: ResidentOption = Resident.auto,
    dtype: DtypeOption = Dtype.auto,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    config: ConfigOption = None,
) -> None:
    """Show a packed checkpoint on one HTML page: error and bits per layer, β histograms, the most damaged matrices.

    With --baseline, the page also compares perplexity, KL divergence and a sample of text with the original model. The
    page contains its pictures; they are also written as PNG files next to it.
    """
    from ..evaluation.measure_perplexity import PerplexityOptions
    from ..report.write import PAGE, ReportOptions, make_report

    folder = output if output is not None else Path(f"{checkpoint.absolute().name}-report")
    scoring = PerplexityOptions(
        model=str(checkpoint),
        dataset=dataset,
        split=split,
        text_field=text_field,
        seqlen=seqlen,
        max_windows=max_windows,
        baseline=baseline,
        seed=seed,
        dtype=dtype.value,
        device=device,
        resident=resident.value,
    )
    console.note(f"reporting on {checkpoint}{f', compared with {baseline},' if baseline else ''} in {folder}")
    print_settings(context)
    page = make_report(ReportOptions(checkpoint, folder, scoring, prompt, max_new_tokens))
    name, record = page.most_damaged(1)[0]
    console.line(f"most damaged: {name}, output error {record['hessian_error']:.5f}")
    console.print_ending(folder / PAGE, "push", checkpoint, "you/name", "--dry-run")
