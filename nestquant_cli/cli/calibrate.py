"""`nestquant calibrate`: Hessians, activation noise and codes of a model, saved for `quantize --calibration`."""

import time
from pathlib import Path
from typing import Annotated

import typer

from . import console
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
)

BITS_HELP = "2 to 8 in steps of 1/8, or 16 to leave them as they are"
PART_DEFAULT = "4, or 16 where only other parts are named"
ActBitsOption = Annotated[
    float | None,
    typer.Option("--act-bits", parser=finite, help=f"Bits of activations: {BITS_HELP}.", show_default=PART_DEFAULT),
]
KvBitsOption = Annotated[
    float | None,
    typer.Option("--kv-bits", parser=finite, help=f"Bits of keys and values: {BITS_HELP}.", show_default=PART_DEFAULT),
]


def calibrate(
    context: typer.Context,
    model: ModelArgument,
    output: FolderOption = None,
    act_bits: ActBitsOption = None,
    kv_bits: KvBitsOption = None,
    config: RecipeOption = None,
    dataset: DatasetOption = "wikitext2",
    text_field: TextFieldOption = None,
    samples: SamplesOption = 128,
    seqlen: SeqlenOption = 2048,
    bos: WindowBosOption = Bos.default,
    seed: SeedOption = 0,
    memory_budget: MemoryOption = DEFAULT_BUDGET,
    dtype: DtypeOption = Dtype.auto,
    device: DeviceOption = "auto",
    revision: RevisionOption = None,
) -> None:
    """Measure the statistics of a model's activations once, for several quantizations.

    One pass over the layers; the folder holds an (n, n) float32 Hessian for every distinct input of n features. The
    same command goes on after an interruption. Several processes share the windows:
    torchrun --nproc-per-node 2 -m nestquant_cli calibrate …
    """
    from ..base.progress import duration
    from ..base.units import parse_bytes
    from ..models.device import pick_device
    from ..models.source import resolve
    from ..parallel.team import joined
    from ..pipeline.recipe import Recipe
    from ..pipeline.recipe_file import read_recipe

    recipe = read_recipe(config, given(context), taken(context), weight_bits=Recipe.weight_bits)
    budget = parse_bytes(memory_budget, "--memory-budget")
    start = time.monotonic()
    with joined(pick_device(device)) as own:
        source = resolve(model, revision)
        folder = output if output is not None else Path(f"{source.name.rpartition('/')[2]}-calibration")
        console.note(f"calibrating {model} on {recipe.samples} windows of {recipe.dataset} into {folder}")
        print_recipe(recipe)

        from ..pipeline.quantize import calibrate as run

        about = run(source, recipe, folder, own, budget, dtype.value)
    console.line(
        f"{about['samples']} windows of {about['seqlen']} tokens from {about['dataset']}, "
        f"{duration(time.monotonic() - start)}"
    )
    console.ending(folder, "quantize", model, "--calibration", folder)
