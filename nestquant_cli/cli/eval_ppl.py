"""`nestquant eval-ppl`: perplexity of a model, alone or compared with a baseline."""

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import console
from .config import print_settings, settings
from .gate_results import JunitOption, report_gates
from .option_groups import EvaluationRun, expand_groups
from .options import (
    BaselineOption,
    Bos,
    BosOption,
    DatasetOption,
    MaxWindowsOption,
    ModelArgument,
    ReportOption,
    SeqlenOption,
    SplitOption,
    TextFieldOption,
    finite,
)

if TYPE_CHECKING:
    from ..evaluation.measure_perplexity import PerplexityOptions, PerplexityReport


def _perplexity(text: str | float) -> float:
    number = finite(text)
    if number < 1:
        raise typer.BadParameter(f"{number:g} is below 1, which a perplexity never is.")
    return number


FailAboveOption = Annotated[
    float | None,
    typer.Option(
        "--fail-above",
        parser=_perplexity,
        metavar="X",
        help="Quality gate: exit with code 1 if the perplexity is above X.",
    ),
]


@expand_groups
def eval_ppl(
    context: typer.Context,
    model: ModelArgument,
    dataset: DatasetOption = "wikitext2",
    split: SplitOption = "test",
    text_field: TextFieldOption = None,
    seqlen: SeqlenOption = 2048,
    max_windows: MaxWindowsOption = None,
    bos: BosOption = Bos.default,
    baseline: BaselineOption = None,
    output: ReportOption = None,
    fail_above: FailAboveOption = None,
    junit: JunitOption = None,
    *,
    run: EvaluationRun,
) -> None:
    """Score a model's perplexity by the standard protocol: text tokenized once, windows without overlap, all of them.

    With --baseline, both models score the same windows, and the KL divergence and top-1 agreement are reported too.
    Several processes share the windows: torchrun --nproc-per-node 2 -m nestquant_cli eval-ppl …
    """
    from ..evaluation.gates import judge_perplexity
    from ..evaluation.junit import refuse_no_gates
    from ..evaluation.measure_perplexity import PerplexityOptions, measure_perplexity
    from ..models.device_choice import pick_device
    from ..parallel.team import joined, launched
    from ..storage.files import write_json

    refuse_no_gates(junit, fail_above, "--fail-above")
    text: dict[str, Any] = {"dataset": dataset, "split": split, "text_field": text_field}
    windows: dict[str, Any] = {"seqlen": seqlen, "max_windows": max_windows, "bos": bos.value}
    options = PerplexityOptions(model, baseline=baseline, **text, **windows, **run.settings())
    _print_start(options)
    print_settings(context)
    with joined(pick_device(run.device)) as device:
        report = measure_perplexity(replace(options, device=device))
    _print(report)
    if output is not None and launched().leads:
        write_json(output, report.as_json() | {"settings": settings(context)})
    verdicts = [] if fail_above is None else [judge_perplexity(report.scores.perplexity, fail_above)]
    report_gates(verdicts, junit, "eval-ppl", model, report.scores.seconds)
    if report.protocol["resident"] is not None:  # packed, here or behind a Hub id
        console.print_ending(output, "generate", model, "Once upon a time")
    else:
        console.print_ending(output, "quantize", model, "--bits", 4)


def _print_start(options: "PerplexityOptions") -> None:
    windows = f"the first {options.max_windows}" if options.max_windows else "all"
    models = f"{options.model} and {options.baseline}" if options.baseline else str(options.model)
    text = f"{options.dataset} ({options.split})"
    console.note(f"scoring {models} on {windows} windows of {options.seqlen} tokens of {text}")


def _print(report: "PerplexityReport") -> None:
    from ..evaluation.provenance import windows_in_words

    _print_scores(report)
    protocol = report.protocol
    tokens = "" if protocol["tokens"] is None else f", {protocol['tokens']} tokens"
    console.line(
        f"{protocol['dataset']} ({protocol['split']}{tokens}): {windows_in_words(protocol)} "
        f"windows of {protocol['seqlen']}, stride {protocol['stride']}, "
        f"{protocol['scored_per_window']} scored in each, BOS {protocol['bos']}, fp32 log-softmax"
    )
    _print_model(protocol["model"], "", protocol["resident"])
    if protocol["baseline"]:
        _print_model(protocol["baseline"], "reference: ", None)
    versions = ", ".join(f"{name} {version}" for name, version in protocol["versions"].items())
    console.line(f"{versions}; seed {protocol['seed']}; {report.scores.seconds:.0f} s")


def _print_scores(report: "PerplexityReport") -> None:
    scores, baseline = report.scores, report.protocol["baseline"]
    columns = ["model", "perplexity", "± s.e.", "KL (nats)", "top-1"]
    rows: list[tuple[object, ...]] = [
        (
            report.protocol["model"]["name"],
            f"{scores.perplexity:.4f}",
            _number(scores.standard_error),
            _number(scores.kl_divergence, 5),
            _number(scores.top1_agreement),
        )
    ]
    if baseline:
        errors = _number(scores.baseline_perplexity), _number(scores.baseline_standard_error)
        rows.append((baseline["name"], *errors, "", ""))
    width = len(columns) if baseline else 3
    console.table(columns[:width], [row[:width] for row in rows])


def _print_model(model: dict[str, Any], label: str, resident: str | None) -> None:
    weights = f"weights {resident}, " if resident else ""
    console.line(
        f"{label}{model['description']}: {model['dtype']}, {model['attention']} attention, {model['device']}, "
        f"{weights}sha256 {model['sha256'][:12]}"
    )


def _number(value: float | None, digits: int = 4) -> str:
    return "" if value is None else f"{value:.{digits}f}"
