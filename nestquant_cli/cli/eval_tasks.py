"""`nestquant eval-tasks`: lm-eval's tasks on a model."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from . import console
from .config import ConfigOption, print_settings, settings
from .eval_ppl import Dtype, DtypeOption
from .gate_results import JunitOption, report_gates
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
    str,
    typer.Option(
        "--tasks", metavar="A,B", help="lm-eval tasks, groups or tags, separated by commas.", show_default=False
    ),
]
FewshotOption = Annotated[
    int | None, typer.Option("--num-fewshot", min=0, help="Examples in the prompt.", show_default="the task's own")
]
LimitOption = Annotated[
    float | None,
    typer.Option(
        "--limit", parser=finite, help="Items of each task; a number below 1 is a fraction of them.", show_default="all"
    ),
]
IncludeOption = Annotated[
    Path | None,
    typer.Option(
        "--include-path",
        metavar="DIR",
        help="Folder with task YAMLs of your own. They can run Python code (!function): use only files you trust.",
    ),
]


def batch_size(text: int | str) -> int | str:
    """A number, or what the evaluation makes of "auto" and "auto:N"."""
    return int(text) if str(text).lstrip("-").isdigit() else text


BatchOption = Annotated[
    Any,
    typer.Option(
        "--batch-size",
        metavar="N|auto[:N]",
        parser=batch_size,
        help="Sequences at a time; auto takes the largest that fit in memory, auto:N looks again N times.",
    ),
]
TemplateOption = Annotated[
    bool,
    typer.Option("--apply-chat-template", help="Send prompts through the tokenizer's chat template, as chats are."),
]
NamedTemplateOption = Annotated[
    str | None,
    typer.Option("--chat-template", metavar="NAME", help="The same with one of several templates, by its name."),
]
SystemInstructionOption = Annotated[
    str | None,
    typer.Option("--system-instruction", metavar="TEXT", help="A system message before each prompt."),
]
TurnsOption = Annotated[
    bool | None,
    typer.Option(
        "--fewshot-as-multiturn/--no-fewshot-as-multiturn",
        help="Examples in the prompt as turns of a conversation.",
        show_default="yes with a chat template",
    ),
]
GenerationOption = Annotated[
    str | None,
    typer.Option(
        "--gen-kwargs",
        metavar="NAME=X,…",
        help="Settings of generation, which win over the tasks' own: temperature=0.7,do_sample=true, or JSON.",
        show_default="the task's own",
    ),
]
SamplesOption = Annotated[
    bool,
    typer.Option(
        "--log-samples",
        help="Also write every item with its prompt and answers, as JSON lines beside --output: FILE.samples.jsonl.",
    ),
]
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
    apply_chat_template: TemplateOption = False,
    chat_template: NamedTemplateOption = None,
    system_instruction: SystemInstructionOption = None,
    fewshot_as_multiturn: TurnsOption = None,
    gen_kwargs: GenerationOption = None,
    log_samples: SamplesOption = False,
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

    Scores of instruction models are without their chat template unless --apply-chat-template is given.

    Several processes share the requests: torchrun --nproc-per-node 2 -m nestquant_cli eval-tasks …
    """
    from ..base.errors import NestQuantError
    from ..evaluation.gates import NOT_EVALUATED
    from ..evaluation.junit import refuse_no_gates
    from ..evaluation.measure_tasks import TaskOptions, measure_tasks
    from ..models.device import pick_device
    from ..parallel.team import joined, launched
    from ..storage.files import write_json, write_text

    refuse_no_gates(junit, fail_below, "--fail-below")
    if log_samples and output is None:
        raise NestQuantError("--log-samples has no place to write to", NOT_EVALUATED, "add --output FILE.json")
    options = TaskOptions(
        model=model,
        tasks=by_comma(tasks, "--tasks"),
        num_fewshot=num_fewshot,
        limit=limit,
        include_path=include_path,
        batch_size=batch_size,
        chat_template=chat_template or apply_chat_template,
        system_instruction=system_instruction,
        fewshot_as_multiturn=fewshot_as_multiturn,
        gen_kwargs=gen_kwargs,
        log_samples=log_samples,
        fail_below=tuple(fail_below or ()),
        seed=seed,
        dtype=dtype.value,
        resident=resident.value,
        device=device,
        revision=revision,
    )
    console.note(f"running {', '.join(options.tasks)} on {model}, {f'{limit:g} of the' if limit else 'all'} items")
    print_settings(context)
    with joined(pick_device(device)) as own:
        report = measure_tasks(replace(options, device=own))
    for row in report.table.splitlines():
        console.line(row)
    console.line(report.how)
    if output is not None and launched().leads:
        if log_samples:
            items = output.with_suffix(".samples.jsonl")
            write_text(items, "".join(f"{json.dumps(item, ensure_ascii=False)}\n" for item in report.samples))
            console.line(f"items: {items}")
        write_json(output, report.as_json() | {"settings": settings(context)})
    report_gates(report.verdicts, junit, "eval-tasks", model, report.protocol["seconds"])
    console.ending(output, "eval-ppl", model)
