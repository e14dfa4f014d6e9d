"""`nestquant eval-tasks`: tasks of the lm-evaluation-harness on a model."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import console
from .config import print_settings, settings
from .gate_results import JunitOption, report_gates
from .option_groups import EvaluationRun, expand_groups
from .options import ModelArgument, ReportOption, by_comma, finite

if TYPE_CHECKING:
    from ..evaluation.measure_tasks import TaskReport

TasksOption = Annotated[
    str,
    typer.Option(
        "--tasks",
        metavar="A,B",
        help="lm-eval tasks, groups or tags to run, separated by commas. needle and arithmetic_steps are made here and "
        "need no network.",
        show_default=False,
    ),
]
FewshotOption = Annotated[
    int | None,
    typer.Option(
        "--num-fewshot", min=0, help="Number of solved examples in the prompt.", show_default="the task's own"
    ),
]
LimitOption = Annotated[
    float | None,
    typer.Option(
        "--limit",
        parser=finite,
        help="Number of items to run of each task; a number below 1 is a fraction of the items.",
        show_default="all",
    ),
]
IncludeOption = Annotated[
    Path | None,
    typer.Option(
        "--include-path",
        metavar="DIR",
        help="Folder with task YAML files of your own. They can run Python code (!function): use only files you trust.",
    ),
]
NeedleTokensOption = Annotated[
    int | None,
    typer.Option(
        "--needle-tokens",
        metavar="N",
        min=1,
        help="Length of the texts of the task needle, in tokens.",
        show_default="4096",
    ),
]
NeedleDepthOption = Annotated[
    float | None,
    typer.Option(
        "--needle-depth",
        metavar="X",
        parser=finite,
        help="Place of the fact in the texts of the task needle: 0 is the beginning, 1 the end.",
        show_default="all over the text",
    ),
]


def batch_size(text: int | str) -> int | str:
    """Parses --batch-size: a number, or a text such as "auto" or "auto:4", which `measure_tasks` checks."""
    return int(text) if str(text).lstrip("-").isdigit() else text


BatchOption = Annotated[
    Any,
    typer.Option(
        "--batch-size",
        metavar="N|auto[:N]",
        parser=batch_size,
        help="Number of sequences in a batch. auto: the largest batch that fits in memory; auto:N: the batch size is "
        "searched again N times, as sequences get shorter.",
    ),
]
TemplateOption = Annotated[
    bool,
    typer.Option(
        "--apply-chat-template",
        help="Send prompts through the tokenizer's chat template. Without it, the model gets them as plain text.",
    ),
]
NamedTemplateOption = Annotated[
    str | None,
    typer.Option(
        "--chat-template",
        metavar="NAME",
        help="Name of the chat template to send prompts through, for a tokenizer that has several.",
    ),
]
SystemInstructionOption = Annotated[
    str | None,
    typer.Option("--system-instruction", metavar="TEXT", help="System message to put before each prompt."),
]
TurnsOption = Annotated[
    bool | None,
    typer.Option(
        "--fewshot-as-multiturn/--no-fewshot-as-multiturn",
        help="Send the examples of --num-fewshot as turns of a conversation, or all in one message.",
        show_default="turns with a chat template, else one message",
    ),
]
GenerationOption = Annotated[
    str | None,
    typer.Option(
        "--gen-kwargs",
        metavar="NAME=X,…",
        help="Settings of text generation that override those of the tasks, as temperature=0.7,do_sample=true or as a "
        "JSON object.",
        show_default="the task's own",
    ),
]
SamplesOption = Annotated[
    bool,
    typer.Option(
        "--log-samples",
        help="Also write every item with its prompt and answers, as JSON lines, to FILE.samples.jsonl next to the file "
        "of --output.",
    ),
]
FailBelowOption = Annotated[
    list[str] | None,
    typer.Option(
        "--fail-below",
        metavar="TASK=X",
        help="Quality gate: exit with code 1 if the main metric of TASK (acc, else acc_norm, else its first one) is "
        "below X. TASK.METRIC=X names another metric. Repeatable.",
    ),
]


@expand_groups
def eval_tasks(
    context: typer.Context,
    model: ModelArgument,
    tasks: TasksOption,
    num_fewshot: FewshotOption = None,
    limit: LimitOption = None,
    include_path: IncludeOption = None,
    needle_tokens: NeedleTokensOption = None,
    needle_depth: NeedleDepthOption = None,
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
    *,
    run: EvaluationRun,
) -> None:
    """Run tasks of the lm-evaluation-harness on a model and print its table of scores.

    Instruction models are scored without their chat template unless --apply-chat-template is given.

    Several processes share the requests: torchrun --nproc-per-node 2 -m nestquant_cli eval-tasks …
    """
    from ..base.errors import NestQuantError
    from ..evaluation.gates import NOT_EVALUATED
    from ..evaluation.junit import refuse_no_gates

    refuse_no_gates(junit, fail_below, "--fail-below")
    if log_samples and output is None:
        raise NestQuantError("--log-samples has no file to write to", NOT_EVALUATED, "add --output FILE.json")
    report = _measure(
        context,
        run,
        model=model,
        tasks=by_comma(tasks, "--tasks"),
        num_fewshot=num_fewshot,
        limit=limit,
        include_path=include_path,
        needle_tokens=needle_tokens,
        needle_depth=needle_depth,
        batch_size=batch_size,
        chat_template=chat_template or apply_chat_template,
        system_instruction=system_instruction,
        fewshot_as_multiturn=fewshot_as_multiturn,
        gen_kwargs=gen_kwargs,
        log_samples=log_samples,
        fail_below=tuple(fail_below or ()),
    )
    _report(report, context, output)
    report_gates(report.verdicts, junit, "eval-tasks", model, report.protocol["seconds"])
    console.print_ending(output, "eval-ppl", model)


def _measure(context: typer.Context, run: EvaluationRun, **fields: Any) -> "TaskReport":
    """The report of the tasks; `fields` are those of `TaskOptions` that `run` does not have."""
    from ..evaluation.measure_tasks import TaskOptions, measure_tasks
    from ..models.device_choice import pick_device
    from ..parallel.team import joined

    options = TaskOptions(**fields, **run.settings())
    items = f"{options.limit:g} of the" if options.limit else "all"
    console.note(f"running {', '.join(options.tasks)} on {options.model}, {items} items")
    print_settings(context)
    with joined(pick_device(run.device)) as device:
        return measure_tasks(replace(options, device=device))


def _report(report: "TaskReport", context: typer.Context, output: Path | None) -> None:
    """Prints the scores, and writes them and the items to `output` where they are asked for."""
    from ..parallel.team import launched
    from ..storage.files import write_json, write_text

    for row in report.table.splitlines():
        console.line(row)
    console.line(report.how)
    if output is None or not launched().leads:
        return
    if context.params["log_samples"]:
        items = output.with_suffix(".samples.jsonl")
        write_text(items, "".join(f"{json.dumps(item, ensure_ascii=False)}\n" for item in report.samples))
        console.line(f"items: {items}")
    write_json(output, report.as_json() | {"settings": settings(context)})
