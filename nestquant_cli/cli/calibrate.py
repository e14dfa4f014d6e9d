"""`nestquant calibrate`: Hessians, activation noise and codes of a model, saved for `quantize --calibration`."""

import time

import typer

from ..storage.default_folders import calibration_folder
from . import console
from .cache_options import KeyBitsOption, ValueBitsOption
from .config import RecipeOption, options_from_file, print_recipe, recipe_settings
from .experts import print_experts
from .option_groups import CalibrationRun, CalibrationText, expand_groups
from .options import FolderOption, ModelArgument
from .recipe_options import (
    ActBitsOption,
    ActMethodOption,
    AllExpertsOption,
    KvBitsOption,
    TensorParallelOption,
)


@expand_groups
def calibrate(
    context: typer.Context,
    model: ModelArgument,
    output: FolderOption = None,
    act_bits: ActBitsOption = None,
    act_method: ActMethodOption = None,
    kv_bits: KvBitsOption = None,
    key_bits: KeyBitsOption = None,
    value_bits: ValueBitsOption = None,
    all_experts: AllExpertsOption = False,
    tensor_parallel: TensorParallelOption = 1,
    config: RecipeOption = None,
    *,
    text: CalibrationText,
    run: CalibrationRun,
) -> None:
    """Measure the statistics of a model's activations once, for several quantizations.

    The layers are passed once. The folder holds an (n, n) float32 Hessian for every distinct input of n features.
    After an interruption, the same command continues. Several processes share the windows:
    torchrun --nproc-per-node 2 -m nestquant_cli calibrate …
    """
    from ..base.progress import duration
    from ..base.units import parse_bytes
    from ..calibration.store import Calibration
    from ..models.device_choice import pick_device
    from ..models.source import resolve
    from ..parallel.team import joined
    from ..pipeline.recipe import Recipe
    from ..pipeline.recipe_file import read_recipe

    recipe = read_recipe(config, recipe_settings(context), options_from_file(context), weight_bits=Recipe.weight_bits)
    budget = parse_bytes(run.memory_budget, "--memory-budget")
    start = time.monotonic()
    with joined(pick_device(run.device)) as device:
        source = resolve(model, run.revision)
        folder = output if output is not None else calibration_folder(source.name)
        console.note(f"calibrating {model} on {recipe.samples} windows of {recipe.dataset} into {folder}")
        print_recipe(recipe)

        from ..pipeline.quantize import calibrate

        about = calibrate(source, recipe, folder, device, budget, run.dtype.value)
        experts = Calibration(folder).experts()
    console.line(
        f"{about['samples']} windows of {about['seqlen']} tokens from {about['dataset']}, "
        f"{duration(time.monotonic() - start)}"
    )
    print_experts(experts)
    console.print_ending(folder, "quantize", model, "--calibration", folder)
