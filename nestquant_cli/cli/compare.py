"""`nestquant compare`: several recipes on one model, quantized and scored, as a table, plots and a report."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..storage.default_folders import comparison_folder
from . import console
from .config import print_settings, recipe_settings
from .eval_tasks import IncludeOption, LimitOption
from .option_groups import EvaluationRun, expand_groups
from .options import (
    Bos,
    DatasetOption,
    MaxWindowsOption,
    ModelArgument,
    SamplesOption,
    SeqlenOption,
    SplitOption,
    TextFieldOption,
    by_comma,
)

if TYPE_CHECKING:
    from ..comparison.result import Comparison

RecipesOption = Annotated[
    str,
    typer.Option(
        "--recipes",
        metavar="A.yaml,B.yaml",
        help="Recipe files, separated by commas. Each becomes a row of the table, named after its file.",
    ),
]
AgainstOption = Annotated[
    str | None,
    typer.Option(
        "--against",
        metavar="NAME",
        help="Row to compare the others with: prints how much of its gap to the original model each of them closes.",
    ),
]
EvalDatasetOption = Annotated[
    str | None,
    typer.Option(
        "--eval-dataset",
        metavar="DATASET",
        help="Text to score, in the forms that --dataset takes. Required if --dataset is a local file.",
        show_default="the data set of --dataset",
    ),
]
EvalFieldOption = Annotated[
    str | None,
    typer.Option(
        "--eval-text-field",
        metavar="NAME",
        help="Field of the records of --eval-dataset that holds the text.",
        show_default="that of --text-field where the data set is the same",
    ),
]
ComparisonBosOption = Annotated[
    Bos,
    typer.Option(
        "--bos",
        help="Where the scored text gets a beginning-of-sequence token (BOS). default: once, if the tokenizer adds "
        "one; each: at the start of every window; none: nowhere. If given, it replaces the bos of the recipes as well.",
    ),
]
OutputOption = Annotated[
    Path | None,
    typer.Option(
        "--output",
        metavar="DIR",
        help="Folder for checkpoints and results. A comparison that is already in it continues.",
        show_default="MODEL-comparison",
    ),
]
SomeTasksOption = Annotated[
    str | None,
    typer.Option(
        "--tasks",
        metavar="A,B",
        help="lm-eval tasks to run on every model as well, separated by commas.",
        show_default="none",
    ),
]


@expand_groups
def compare(
    context: typer.Context,
    model: ModelArgument,
    recipes: RecipesOption,
    against: AgainstOption = None,
    output: OutputOption = None,
    dataset: DatasetOption = "wikitext2",
    text_field: TextFieldOption = None,
    samples: SamplesOption = 128,
    seqlen: SeqlenOption = 2048,
    eval_dataset: EvalDatasetOption = None,
    eval_text_field: EvalFieldOption = None,
    split: SplitOption = "test",
    max_windows: MaxWindowsOption = None,
    bos: ComparisonBosOption = Bos.default,
    tasks: SomeTasksOption = None,
    limit: LimitOption = None,
    include_path: IncludeOption = None,
    *,
    run: EvaluationRun,
) -> None:
    """Quantize a model by several recipes, and score all results and the original in one run.

    --dataset, --text-field, --samples, --seqlen, --bos and --seed override the recipes where they are given. The folder
    gets a checkpoint for each recipe, comparison.json, report.md and plots. After an interruption, the same command
    continues; a further recipe costs only its own time.
    """
    from ..base.errors import NestQuantError
    from ..comparison.entries import read_entries

    if tasks is None and (limit is not None or include_path is not None):
        raise NestQuantError("--limit and --include-path are for tasks", "nothing was compared", "add --tasks A,B")
    entries = read_entries([Path(name) for name in by_comma(recipes, "--recipes")], recipe_settings(context))
    _compare(
        context,
        run,
        model,
        entries=tuple(entries),
        folder=output,
        against=against,
        dataset=_scored(dataset, eval_dataset),
        split=split,
        text_field=eval_text_field if eval_dataset is not None else eval_text_field or text_field,
        seqlen=seqlen,
        max_windows=max_windows,
        bos=bos.value,
        tasks=() if tasks is None else by_comma(tasks, "--tasks"),
        limit=limit,
        include_path=include_path,
    )


def _compare(context: typer.Context, run: EvaluationRun, model: str, folder: Path | None, **fields: Any) -> None:
    """Runs the comparison and prints it; `fields` are those of `CompareOptions` that the others do not give."""
    from ..comparison.compare import CompareOptions, compare
    from ..models.source import resolve

    source = resolve(model, run.revision)
    folder = folder if folder is not None else comparison_folder(source.name)
    settings = {name: value for name, value in run.settings().items() if name != "revision"}
    options = CompareOptions(model=source, folder=folder, **fields, **settings)
    console.note(f"quantizing {model} by {len(options.entries)} recipes and scoring all of them in {folder}")
    print_settings(context)
    _print(compare(options), folder)


def _scored(dataset: str, eval_dataset: str | None) -> str:
    """Name of the data set to score: `eval_dataset`, or the one of --dataset where that has splits.

    Raises:
        NestQuantError: --dataset is a local file, whose text calibrates, and nothing else is named.
    """
    from ..base.errors import NestQuantError

    if eval_dataset is None and Path(dataset).suffix:
        raise NestQuantError(
            f"{dataset} has no split that is kept for evaluation",
            "nothing was compared",
            "name other text with --eval-dataset",
        )
    return eval_dataset or dataset


def _print(comparison: "Comparison", folder: Path) -> None:
    from ..comparison.tables import cells, columns
    from ..evaluation.provenance import windows_in_words

    protocol = comparison.protocol
    console.table(columns(comparison), cells(comparison), title=comparison.model)
    console.line(
        f"{protocol['dataset']} ({protocol['split']}): {windows_in_words(protocol)} windows "
        f"of {protocol['seqlen']}, BOS {protocol['bos']}, fp32 log-softmax"
    )
    console.line(f"reference: {protocol['reference']}")
    best = min(comparison.rows[1:], key=lambda row: row.perplexity)
    console.print_ending(folder / "report.md", "inspect", folder / best.name)
