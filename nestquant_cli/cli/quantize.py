"""`nestquant quantize`: a packed checkpoint from a model, in one command."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import console
from .calibrate import BITS_HELP, PART_DEFAULT, ActBitsOption, KvBitsOption
from .config import RecipeOption, given, print_recipe, taken
from .eval_ppl import Dtype, DtypeOption
from .options import (
    DEFAULT_BUDGET,
    Bos,
    DatasetOption,
    DeviceOption,
    FolderOption,
    MemoryOption,
    ModelArgument,
    RevisionOption,
    SamplesOption,
    SeedOption,
    SeqlenOption,
    TextFieldOption,
    WindowBosOption,
    finite,
    offer,
)
from .tune import print_tuning

if TYPE_CHECKING:
    from ..pipeline.plan import Plan

BitsOption = Annotated[
    float | None,
    typer.Option(
        "--bits",
        parser=finite,
        help=f"Bits of weights, activations, keys and values (with glvq of weights alone): {BITS_HELP}.",
        show_default="4",
    ),
]
WeightBitsOption = Annotated[
    float | None,
    typer.Option(
        "--weight-bits",
        parser=finite,
        help=f"Bits of weights: {BITS_HELP}. Given alone, it leaves activations, keys and values at 16.",
        show_default=PART_DEFAULT,
    ),
]
CalibrationOption = Annotated[
    Path | None, typer.Option("--calibration", metavar="DIR", help="A folder written by 'nestquant calibrate'.")
]
MethodOption = Annotated[
    str,
    typer.Option(
        "--method",
        help="Codec: nestquant, integer, or glvq (weights alone).",
        autocompletion=offer("nestquant", "integer", "glvq"),
    ),
]
RotationOption = Annotated[
    str,
    typer.Option(
        "--rotation",
        help="Rotation of inputs, keys and values: none, hadamard or learned.",
        autocompletion=offer("none", "hadamard", "learned"),
    ),
]
FeedbackOption = Annotated[
    str,
    typer.Option(
        "--feedback",
        help="ldlq: feed the rounding errors of weights back; none: round plainly.",
        autocompletion=offer("none", "ldlq"),
    ),
]
PathsOption = Annotated[
    int | None,
    typer.Option(
        "--paths",
        help="Paths that the search over the rows of a weight keeps, 1 to 64; 1 is plain LDLQ, time grows with more.",
        show_default="8 for weights alone, glvq 16, else 1",
    ),
]
AllocationOption = Annotated[
    str,
    typer.Option(
        "--allocation",
        help="uniform: all matrices have the same bits; mixed: more bits where errors cost more.",
        autocompletion=offer("uniform", "mixed"),
    ),
]


def quantize(
    context: typer.Context,
    model: ModelArgument,
    bits: BitsOption = None,
    weight_bits: WeightBitsOption = None,
    act_bits: ActBitsOption = None,
    kv_bits: KvBitsOption = None,
    method: MethodOption = "nestquant",
    rotation: RotationOption = "hadamard",
    feedback: FeedbackOption = "ldlq",
    paths: PathsOption = None,
    qa: Annotated[
        bool, typer.Option("--qa/--no-qa", help="Fit the weights to the rounded input, or to the unrounded one.")
    ] = True,
    centering: Annotated[
        bool,
        typer.Option("--centering/--no-centering", help="Let codes of activations and keys subtract a common center."),
    ] = True,
    sequential: Annotated[
        bool,
        typer.Option(
            "--sequential/--no-sequential",
            help="Calibrate each matrix after those before it are quantized; weights alone, four times the passes.",
        ),
    ] = False,
    config: RecipeOption = None,
    calibration: CalibrationOption = None,
    dataset: DatasetOption = "wikitext2",
    text_field: TextFieldOption = None,
    samples: SamplesOption = 128,
    seqlen: SeqlenOption = 2048,
    bos: WindowBosOption = Bos.default,
    seed: SeedOption = 0,
    damping: Annotated[
        float, typer.Option("--damping", parser=finite, help="Damping of H, as a fraction of its mean diagonal.")
    ] = 0.01,
    allocation: AllocationOption = "uniform",
    tune: Annotated[
        bool | None,
        typer.Option("--tune/--no-tune", help="Then tune row scales, norms and biases, as 'nestquant tune' does."),
    ] = None,
    output: FolderOption = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print layers, bytes, memory and time, then stop.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Resume an interrupted run of the same command.")
    ] = True,
    memory_budget: MemoryOption = DEFAULT_BUDGET,
    dtype: DtypeOption = Dtype.auto,
    device: DeviceOption = "auto",
    revision: RevisionOption = None,
) -> None:
    """Quantize a model to a packed checkpoint: rotate, calibrate, round with QA-LDLQ, pack, write.

    Without --calibration it calibrates on the way. The checkpoint loads with
    AutoModelForCausalLM.from_pretrained after `import nestquant_cli`. Several processes share the work:
    torchrun --nproc-per-node 2 -m nestquant_cli quantize …
    """
    from ..base.units import parse_bytes
    from ..models.device import pick_device
    from ..models.source import resolve
    from ..parallel.team import joined
    from ..pipeline.recipe_file import read_recipe, with_tuning

    settings = given(context)
    recipe = with_tuning(read_recipe(config, settings, taken(context)), tune)
    budget = parse_bytes(memory_budget, "--memory-budget")
    with joined(pick_device(device)) as own:
        source = resolve(model, revision)
        folder = output if output is not None else Path(f"{source.name.rpartition('/')[2]}-nestquant-{recipe.tag()}")
        console.note(f"{'planning to quantize' if plan else 'quantizing'} {model} to {recipe.tag()} in {folder}")
        print_recipe(recipe)
        if plan:
            from ..pipeline.estimate import estimate_seconds
            from ..pipeline.plan import make_plan

            made = make_plan(source, recipe, budget=budget, dtype=dtype.value)
            _print_plan(made, estimate_seconds(made, recipe, own), folder, recipe.tune is not None)
            return

        from ..pipeline.quantize_and_tune import quantize_and_tune as run

        report = run(source, recipe, folder, own, calibration, resume, settings, dtype.value, budget=budget)
    _print_report(report, folder)


def _print_plan(plan: "Plan", seconds: float, folder: Path, tuned: bool) -> None:
    from ..base.progress import duration
    from ..base.units import format_bytes

    rows = [
        (row.name, f"{row.matrices}×", f"{row.out_features}×{row.in_features}", f"{row.bits:.4f}", f"{row.bytes:,}")
        for row in plan.rows
    ]
    console.table(["matrices", "count", "shape", "bits per weight", "bytes"], rows)
    how = "read one by one" if plan.streamed else "the model is loaded whole"
    console.line(f"decoder layers: {plan.layers}, {how}")
    console.line(f"quantized weights: {plan.weights:,} at {plan.bits_per_weight:.4f} bits each")
    console.line(f"checkpoint: {plan.file_bytes:,} bytes in {folder}; the rest stays in 16 bits")
    console.line(f"hidden states of the calibration windows: {format_bytes(plan.hidden_bytes)}")
    console.line(f"peak memory: about {format_bytes(plan.memory_bytes)}")
    tuning = ", tuning included" if tuned else ""
    console.line(f"time: about {duration(seconds)} for one process on this machine{tuning}")


def _print_report(report: dict[str, Any], folder: Path) -> None:
    from ..base.progress import duration

    rows = []
    for kind, records in _by_kind(report["matrices"]).items():
        errors = [record["relative_error"] for record in records]
        outputs = [record["hessian_error"] for record in records]
        rows.append(
            (
                kind,
                len(records),
                f"{sum(errors) / len(errors):.5f}",
                f"{sum(outputs) / len(outputs):.5f}",
                f"{max(outputs):.5f}",
                sum(record.get("clipped_blocks", 0) for record in records),
                f"{max(record['damping'] for record in records):g}",
            )
        )
    if rows:
        columns = ["matrix", "count", "weight error", "output error", "worst", "clipped blocks", "damping"]
        console.table(columns, rows, title="mean relative squared errors")
    print_tuning(report)
    console.line(f"time: {duration(report['seconds'])}, peak memory {report['peak_memory_bytes'] / 2**30:.2f} GiB")
    console.ending(folder, "eval-ppl", folder)


def _by_kind(matrices: dict[str, dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    kinds: dict[str, list[dict[str, Any]]] = {}
    for name, record in matrices.items():
        kinds.setdefault(name.rpartition(".")[2], []).append(record)
    return kinds
