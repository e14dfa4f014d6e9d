"""`nestquant compare`: several recipes on one model, quantized, scored side by side, as table, plots and report."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import console
from .config import ConfigOption, given, print_settings
from .eval_ppl import Dtype, DtypeOption
from .eval_tasks import IncludeOption, LimitOption
from .options import (
    Bos,
    DatasetOption,
    DeviceOption,
    MaxWindowsOption,
    ModelArgument,
    Resident,
    ResidentOption,
    RevisionOption,
    SamplesOption,
    SeedOption,
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
        help="Recipe files, separated by commas; each row is named after its file.",
    ),
]
AgainstOption = Annotated[
    str | None,
    typer.Option("--against", metavar="NAME", help="Print how much of this recipe's gap the others close."),
]
EvalDatasetOption = Annotated[
    str | None,
    typer.Option(
        "--eval-dataset",
        metavar="DATASET",
        help="Text to score; required if --dataset is a local file.",
        show_default="that of --dataset",
    ),
]
EvalFieldOption = Annotated[
    str | None,
    typer.Option(
        "--eval-text-field",
        metavar="NAME",
        help="Field of --eval-dataset; see --text-field.",
        show_default="that of --text-field where the data set is the same",
    ),
]
ComparisonBosOption = Annotated[
    Bos,
    typer.Option(
        "--bos",
        help="Where the scored text gets BOS (default: as the tokenizer does, once; each: in every window; none: "
        "nowhere). Where it is given, calibration windows get it by the same word, see 'nestquant quantize'.",
    ),
]
OutputOption = Annotated[
    Path | None,
    typer.Option("--output", metavar="DIR", help="Folder for checkpoints and result; resumes a comparison in it."),
]
SomeTasksOption = Annotated[
    str | None, typer.Option("--tasks", metavar="A,B", help="Also run these lm-eval tasks on every model.")
]


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
    resident: ResidentOption = Resident.auto,
    dtype: DtypeOption = Dtype.auto,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    revision: RevisionOption = None,
    config: ConfigOption = None,
) -> None:
    """Quantize a model by several recipes and score all of them beside it, in one run.

    --dataset, --text-field, --samples, --seqlen, --bos and --seed win over the recipes where they are given. The
    folder gets a checkpoint for each recipe, comparison.json, report.md and plots. The same command goes on after an
    interruption, and a further recipe costs only itself.
    """
    from ..base.errors import NestQuantError
    from ..comparison.compare import CompareOptions
    from ..comparison.compare import compare as run
    from ..comparison.entries import read_entries
    from ..models.source import resolve

    if tasks is None and (limit is not None or include_path is not None):
        raise NestQuantError("--limit and --include-path are for tasks", "nothing was compared", "add --tasks A,B")
    entries = read_entries([Path(name) for name in by_comma(recipes, "--recipes")], given(context))
    source = resolve(model, revision)
    options = CompareOptions(
        model=source,
        entries=tuple(entries),
        folder=output if output is not None else Path(f"{source.name.rpartition('/')[2]}-comparison"),
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
        seed=seed,
        dtype=dtype.value,
        device=device,
        resident=resident.value,
    )
    console.note(f"quantizing {model} by {len(entries)} recipes and scoring all beside it, in {options.folder}")
    print_settings(context)
    _print(run(options), options.folder)


def _scored(dataset: str, eval_dataset: str | None) -> str:
    from ..base.errors import NestQuantError

    if eval_dataset is None and Path(dataset).suffix:
        raise NestQuantError(
            f"{dataset} has no part that is kept for evaluation",
            "nothing was compared",
            "name other text with --eval-dataset",
        )
    return eval_dataset or dataset


def _print(found: "Comparison", folder: Path) -> None:
    from ..comparison.tables import cells, columns
    from ..evaluation.provenance import windows_said

    protocol = found.protocol
    console.table(columns(found), cells(found), title=found.model)
    console.line(
        f"{protocol['dataset']} ({protocol['split']}): {windows_said(protocol)} windows "
        f"of {protocol['seqlen']}, BOS {protocol['bos']}, fp32 log-softmax"
    )
    console.line(f"reference: {protocol['reference']}")
    best = min(found.rows[1:], key=lambda row: row.perplexity)
    console.ending(folder / "report.md", "inspect", folder / best.name)
