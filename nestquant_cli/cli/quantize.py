"""`nestquant quantize`: a packed checkpoint from a model, in one command."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..base.names import kind_of_matrix
from . import console
from .cache_options import (
    KeyBitsOption,
    KeyScalesOption,
    KvSinksOption,
    KvSkipLayersOption,
    KvWindowOption,
    ValueBitsOption,
)
from .config import RecipeOption, options_from_file, print_recipe, recipe_settings
from .experts import print_experts
from .option_groups import CalibrationRun, CalibrationText, expand_groups
from .options import FolderOption, ModelArgument
from .rate_options import ActAllocationOption, AllocationOption, TieInputsOption
from .recipe_options import (
    ActBitsOption,
    ActMethodOption,
    AllExpertsOption,
    BitsOption,
    CalibrationOption,
    CenteringOption,
    ChannelScalesOption,
    DampingOption,
    EmbeddingBitsOption,
    FeedbackOption,
    HeadBitsOption,
    KvBitsOption,
    MethodOption,
    OutputMetricOption,
    PathsOption,
    PlanOption,
    QaOption,
    ResumeOption,
    RotationOption,
    TensorParallelOption,
    TuneOption,
    WeightBitsOption,
)
from .sequential_options import DriftCorrectionOption, ResidualCorrectionOption, SequentialOption
from .staying import print_staying
from .tune import print_tuning

if TYPE_CHECKING:
    from ..models.source import Source
    from ..pipeline.plan import Plan
    from ..pipeline.recipe import Recipe


@expand_groups
def quantize(
    context: typer.Context,
    model: ModelArgument,
    bits: BitsOption = None,
    weight_bits: WeightBitsOption = None,
    act_bits: ActBitsOption = None,
    kv_bits: KvBitsOption = None,
    key_bits: KeyBitsOption = None,
    value_bits: ValueBitsOption = None,
    kv_skip_layers: KvSkipLayersOption = None,
    kv_window: KvWindowOption = 0,
    kv_sinks: KvSinksOption = 0,
    method: MethodOption = "nestquant",
    act_method: ActMethodOption = None,
    rotation: RotationOption = "hadamard",
    feedback: FeedbackOption = "ldlq",
    paths: PathsOption = None,
    qa: QaOption = True,
    centering: CenteringOption = True,
    channel_scales: ChannelScalesOption = False,
    key_scales: KeyScalesOption = False,
    sequential: SequentialOption = False,
    drift_correction: DriftCorrectionOption = None,
    residual_correction: ResidualCorrectionOption = None,
    all_experts: AllExpertsOption = False,
    tensor_parallel: TensorParallelOption = 1,
    embedding_bits: EmbeddingBitsOption = 16,
    head_bits: HeadBitsOption = 16,
    config: RecipeOption = None,
    calibration: CalibrationOption = None,
    *,
    text: CalibrationText,
    damping: DampingOption = 0.01,
    output_metric: OutputMetricOption = "none",
    allocation: AllocationOption = "uniform",
    act_allocation: ActAllocationOption = "uniform",
    tie_inputs: TieInputsOption = False,
    tune: TuneOption = None,
    output: FolderOption = None,
    plan: PlanOption = False,
    resume: ResumeOption = True,
    run: CalibrationRun,
) -> None:
    """Quantize a model to a packed checkpoint: rotate, calibrate, round with QA-LDLQ, pack, write.

    Without --calibration, the model is calibrated in the same run. The checkpoint loads with
    AutoModelForCausalLM.from_pretrained after `import nestquant_cli`. Several processes share the work:
    torchrun --nproc-per-node 2 -m nestquant_cli quantize …
    """
    from ..base.units import parse_bytes
    from ..models.device_choice import pick_device
    from ..models.source import resolve
    from ..parallel.team import joined
    from ..pipeline.recipe_file import read_recipe, with_tuning
    from ..storage.default_folders import packed_folder

    settings = recipe_settings(context)
    recipe = with_tuning(read_recipe(config, settings, options_from_file(context)), tune)
    budget, dtype = parse_bytes(run.memory_budget, "--memory-budget"), run.dtype.value
    with joined(pick_device(run.device)) as device:
        source = resolve(model, run.revision)
        folder = output if output is not None else packed_folder(source.name, recipe.tag())
        console.note(f"{'planning to quantize' if plan else 'quantizing'} {model} to {recipe.tag()} in {folder}")
        print_recipe(recipe)
        if plan:
            _plan(source, recipe, folder, device, dtype, budget)
            return

        from ..pipeline.quantize_and_tune import quantize_and_tune

        report = quantize_and_tune(source, recipe, folder, device, calibration, resume, settings, dtype, budget=budget)
    _print_report(report, folder, recipe.embedding_bits < 16 or recipe.head_bits < 16)


def _plan(source: "Source", recipe: "Recipe", folder: Path, device: str, dtype: str, budget: int) -> None:
    from ..pipeline.estimate import estimate_seconds
    from ..pipeline.plan import make_plan

    plan = make_plan(source, recipe, budget=budget, dtype=dtype)
    _print_plan(plan, estimate_seconds(plan, recipe, device), folder, recipe.tune is not None)


def _print_plan(plan: "Plan", seconds: float, folder: Path, tuned: bool) -> None:
    from ..base.progress import duration
    from ..base.units import format_bytes

    rows = [
        (row.name, f"{row.matrices}×", f"{row.out_features}×{row.in_features}", f"{row.bits:.4f}", f"{row.bytes:,}")
        for row in (*plan.rows, *plan.tables)
    ]
    console.table(["matrices", "count", "shape", "bits per weight", "bytes"], rows)
    how = "read one by one" if plan.streamed else "the model is loaded whole"
    console.line(f"decoder layers: {plan.layers}, {how}")
    most = "" if plan.exact else "up to "
    console.line(f"quantized weights: {most}{plan.weights:,} at {plan.bits_per_weight:.4f} bits each")
    console.line(f"checkpoint: {plan.file_bytes:,} bytes in {folder}; the rest stays in 16 bits")
    print_staying(plan.staying.to_dict())
    console.line(f"hidden states of the calibration windows: {format_bytes(plan.hidden_bytes)}")
    console.line(f"peak memory: about {format_bytes(plan.memory_bytes)}")
    tuning = ", tuning included" if tuned else ""
    console.line(f"time: about {duration(seconds)} for one process on this machine{tuning}")


def _print_report(report: dict[str, Any], folder: Path, tables: bool) -> None:
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
    print_staying(report.get("staying", {}))
    print_experts(report["matrices"])
    print_tuning(report)
    console.line(f"time: {duration(report['seconds'])}, peak memory {report['peak_memory_bytes'] / 2**30:.2f} GiB")
    console.print_ending(folder, "eval-ppl", folder)
    # With weights in 16 bits it was not tried, and vLLM's plugin refuses coded embeddings and heads.
    if rows and not tables:
        console.print_serving(folder)


def _by_kind(matrices: dict[str, dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    kinds: dict[str, list[dict[str, Any]]] = {}
    for name, record in matrices.items():
        kinds.setdefault(kind_of_matrix(name), []).append(record)
    return kinds
