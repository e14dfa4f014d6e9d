"""`nestquant eval-ppl`: perplexity of a model, alone or beside a baseline."""

from dataclasses import replace
from enum import Enum
from typing import TYPE_CHECKING, Annotated

import typer

from . import console
from .config import ConfigOption, print_settings, settings
from .gate_results import JunitOption, report_gates
from .options import (
    BaselineOption,
    Bos,
    BosOption,
    DatasetOption,
    DeviceOption,
    MaxWindowsOption,
    ModelArgument,
    ReportOption,
    Resident,
    ResidentOption,
    RevisionOption,
    SeedOption,
    SeqlenOption,
    SplitOption,
    TextFieldOption,
    finite,
)

if TYPE_CHECKING:
    from ..evaluation.measure_perplexity import PerplexityReport


class Dtype(str, Enum):
    """The dtype a model computes in."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def _perplexity(text: str | float) -> float:
    number = finite(text)
    if number < 1:
        raise typer.BadParameter(f"{number:g} is below 1, and no perplexity is.")
    return number


DtypeOption = Annotated[
    Dtype,
    typer.Option("--dtype", help="Dtype to compute in; auto is that of the checkpoint, or bfloat16 for a GGUF file."),
]
FailAboveOption = Annotated[
    float | None,
    typer.Option("--fail-above", parser=_perplexity, metavar="X", help="Exit with 1 when the perplexity is above X."),
]


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
    resident: ResidentOption = Resident.auto,
    dtype: DtypeOption = Dtype.auto,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    revision: RevisionOption = None,
    config: ConfigOption = None,
) -> None:
    """Perplexity by the standard protocol: text tokenized once, windows without overlap, all of them.

    With --baseline both models score the same windows, and their KL divergence and top-1 agreement are reported too.
    Several processes share the windows: torchrun --nproc-per-node 2 -m nestquant_cli eval-ppl …
    """
    from ..evaluation.gates import judge_perplexity
    from ..evaluation.junit import refuse_no_gates
    from ..evaluation.measure_perplexity import PerplexityOptions, measure_perplexity
    from ..models.device import pick_device
    from ..parallel.team import joined, launched
    from ..storage.files import write_json

    refuse_no_gates(junit, fail_above, "--fail-above")
    options = PerplexityOptions(
        model=model,
        dataset=dataset,
        split=split,
        text_field=text_field,
        seqlen=seqlen,
        max_windows=max_windows,
        bos=bos.value,
        baseline=baseline,
        seed=seed,
        dtype=dtype.value,
        resident=resident.value,
        device=device,
        revision=revision,
    )
    windows = f"the first {max_windows}" if max_windows else "all"
    beside = f" beside {baseline}" if baseline else ""
    console.note(f"scoring {model}{beside} on {windows} windows of {seqlen} tokens of {dataset} ({split})")
    print_settings(context)
    with joined(pick_device(device)) as own:
        report = measure_perplexity(replace(options, device=own))
    _print(report)
    if output is not None and launched().leads:
        write_json(output, report.as_json() | {"settings": settings(context)})
    verdicts = [] if fail_above is None else [judge_perplexity(report.scores.perplexity, fail_above)]
    report_gates(verdicts, junit, "eval-ppl", model, report.scores.seconds)
    if report.protocol["resident"] is not None:  # packed, here or behind a Hub id
        console.ending(output, "generate", model, "Once upon a time")
    else:
        console.ending(output, "quantize", model, "--bits", 4)


def _print(report: "PerplexityReport") -> None:
    from ..evaluation.provenance import windows_said

    scores, protocol = report.scores, report.protocol
    tokens = "" if protocol["tokens"] is None else f", {protocol['tokens']} tokens"
    model, original = protocol["model"], protocol["baseline"]
    columns = ["model", "perplexity", "± s.e.", "KL (nats)", "top-1"]
    rows: list[tuple[object, ...]] = [
        (
            model["name"],
            f"{scores.perplexity:.4f}",
            _number(scores.standard_error),
            _number(scores.kl_divergence, 5),
            _number(scores.top1_agreement),
        )
    ]
    if original:
        errors = _number(scores.baseline_perplexity), _number(scores.baseline_standard_error)
        rows.append((original["name"], *errors, "", ""))
    width = len(columns) if original else 3
    console.table(columns[:width], [row[:width] for row in rows])
    console.line(
        f"{protocol['dataset']} ({protocol['split']}{tokens}): {windows_said(protocol)} "
        f"windows of {protocol['seqlen']}, stride {protocol['stride']}, "
        f"{protocol['scored_per_window']} scored in each, BOS {protocol['bos']}, fp32 log-softmax"
    )
    for each in filter(None, (model, original)):
        label = "reference: " if each is original else ""
        console.line(
            f"{label}{each['description']}: {each['dtype']}, {each['attention']} attention, {each['device']}, "
            + (f"weights {protocol['resident']}, " if each is model and protocol["resident"] else "")
            + f"sha256 {each['sha256'][:12]}"
        )
    versions = ", ".join(f"{name} {version}" for name, version in protocol["versions"].items())
    console.line(f"{versions}; seed {protocol['seed']}; {scores.seconds:.0f} s")


def _number(value: float | None, digits: int = 4) -> str:
    return "" if value is None else f"{value:.{digits}f}"
