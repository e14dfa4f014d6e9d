"""`nestquant eval-tasks`: lm-eval's tasks on a model."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from . import console
from .config import ConfigOption, settings, tell_settings
from .eval_ppl import Dtype, DtypeOption
from .gates import JunitOption, report_gates
from .options import (
    DeviceOption,
    ModelArgument,
    ReportOption,
    Resident,
    ResidentOption,
    RevisionOption,
    SeedOption,
    by_comma,
    finite,
)

TasksOption = Annotated[
    str, typer.Option("--tasks", metavar="A,B", help="lm-eval tasks, groups or tags, by comma.", show_default=False)
]
FewshotOption = Annotated[
    int | None, typer.Option("--num-fewshot", min=0, help="Examples in the prompt.", show_default="the task's own")
]
LimitOption = Annotated[
    float | None,
    typer.Option("--limit", parser=finite, help="Items per task; below 1 a fraction of them.", show_default="all"),
]
IncludeOption = Annotated[
    Path | None, typer.Option("--include-path", metavar="DIR", help="Folder with task YAMLs of your own.")
]
BatchOption = Annotated[int, typer.Option("--batch-size", min=1, help="Sequences at a time.")]
FailBelowOption = Annotated[
    list[str] | None,
    typer.Option(
        "--fail-below",
        metavar="TASK=X",
        help="Exit with 1 when the task's main metric (acc, else acc_norm, else its first) is below X; TASK.METRIC=X "
        "for another one; repeatable.",
    ),
]


def eval_tasks(
    context: typer.Context,
    model: ModelArgument,
    tasks: TasksOption,
    num_fewshot: FewshotOption = None,
    limit: LimitOption = None,
    include_path: IncludeOption = None,
    batch_size: BatchOption = 1,
    output: ReportOption = None,
    fail_below: FailBelowOption = None,
    junit: JunitOption = None,
    resident: ResidentOption = Resident.auto,
    dtype: DtypeOption = Dtype.auto,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    revision: RevisionOption = None,
    config: ConfigOption = None,
) -> None:
    """Runs tasks of the lm-evaluation-harness on the loaded model and prints its table.

    Several processes share the requests: torchrun --nproc-per-node 2 -m nestquant_cli eval-tasks …
    """
    from ..evaluation.junit import refuse_no_gates
    from ..evaluation.tasks import TaskOptions, measure_tasks
    from ..files import write_json
    from ..models.device import pick_device
    from ..team import joined, launched

    refuse_no_gates(junit, fail_below, "--fail-below")
    options = TaskOptions(
        model=model,
        tasks=by_comma(tasks, "--tasks"),
        num_fewshot=num_fewshot,
        limit=limit,
        include_path=include_path,
        batch_size=batch_size,
        fail_below=tuple(fail_below or ()),
        seed=seed,
        dtype=dtype.value,
        resident=resident.value,
        device=device,
        revision=revision,
    )
    console.note(f"running {', '.join(options.tasks)} on {model}, {f'{limit:g} of the' if limit else 'all'} items")
    tell_settings(context)
    with joined(pick_device(device)) as own:
        report = measure_tasks(replace(options, device=own))
    console.line(report.table)
    if output is not None and launched().leads:
        write_json(output, report.as_json() | {"settings": settings(context)})
    report_gates(report.verdicts, junit, "eval-tasks", model, report.protocol["seconds"])
    console.ending(output, "eval-ppl", model)
