"""Option types that commands share, so that a name means the same everywhere; their defaults are each command's own."""

import math
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

MODEL_FORMS = "a Hugging Face id (or ID@REV), a model folder, a .gguf file, a packed checkpoint, or 'demo'"


def offer(*values: str) -> Callable[[str], list[str]]:
    """Shell completion that offers `values`. Other values are accepted too; where none fits, the shell offers files."""
    return lambda incomplete: [value for value in values if value.startswith(incomplete)]


def finite(text: str | float) -> float:
    """Parses the value of an option that takes a number.

    Raises:
        typer.BadParameter: not a number, NaN or infinite.
    """
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise typer.BadParameter(f"{str(text)!r} is not a finite number.")
    return number


def by_comma(text: str, option: str) -> tuple[str, ...]:
    """The names in the value of an option that takes several.

    Raises:
        typer.BadParameter: there is none.
    """
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise typer.BadParameter(f"{text!r} has no name in it.", param_hint=option)
    return names


def writable(context: typer.Context, path: Path | None) -> Path | None:
    """Option callback: refuses an output file that cannot be written, before any work is done.

    Raises:
        NestQuantError: the path is a folder, or its folder cannot be written to.
    """
    if path is not None and not context.resilient_parsing:
        from ..storage.output_checks import refuse_unusable_file

        refuse_unusable_file(path)
    return path


class Bos(str, Enum):
    """Where windows get a beginning-of-sequence token."""

    default = "default"
    each = "each"
    none = "none"


class Resident(str, Enum):
    """Form of quantized weights in memory."""

    packed = "packed"
    int8 = "int8"
    auto = "auto"


class Dtype(str, Enum):
    """Dtype a model computes in."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help=f"Model to use: {MODEL_FORMS}.", show_default=False, autocompletion=offer("demo")
    ),
]
RevisionOption = Annotated[
    str | None,
    typer.Option(
        "--revision",
        metavar="REV",
        help="Branch, tag or commit of MODEL on the Hugging Face Hub. Writing MODEL as ID@REV does the same.",
        show_default="the main branch",
    ),
]
CheckpointArgument = Annotated[
    Path,
    typer.Argument(
        metavar="CKPT", help="Folder of a packed checkpoint, as 'nestquant quantize' writes it.", show_default=False
    ),
]

DatasetOption = Annotated[
    str,
    typer.Option(
        "--dataset",
        metavar="DATASET",
        help="Text to use: wikitext2, c4, 'demo', a .txt, .jsonl, .json or .parquet file (also .gz), a folder "
        "written by save_to_disk of the datasets library, or a data set on the Hub as ORG/NAME or ORG/NAME:CONFIG.",
        autocompletion=offer("wikitext2", "c4", "demo"),
    ),
]
SplitOption = Annotated[
    str,
    typer.Option("--split", help="Split of the data set, such as train or test; a local file is always read whole."),
]
SamplesOption = Annotated[int, typer.Option("--samples", min=1, help="Number of calibration windows, drawn by --seed.")]
SeqlenOption = Annotated[int, typer.Option("--seqlen", min=2, help="Length of each window in tokens.")]
SeedOption = Annotated[
    int, typer.Option("--seed", min=0, help="Seed of every random choice; repeating it repeats the result.")
]
DeviceOption = Annotated[
    str,
    typer.Option(
        "--device",
        help="Device to compute on: auto (a GPU if there is one, else the CPU), cpu, cuda, cuda:1 …",
        autocompletion=offer("auto", "cpu", "cuda"),
    ),
]
DtypeOption = Annotated[
    Dtype,
    typer.Option(
        "--dtype", help="Dtype to compute in; auto is the checkpoint's own dtype, or bfloat16 for a GGUF file."
    ),
]
BosOption = Annotated[
    Bos,
    typer.Option(
        "--bos",
        help="Where the scored text gets a beginning-of-sequence token (BOS). default: once, if the tokenizer adds "
        "one; each: at the start of every window; none: nowhere.",
    ),
]
WindowBosOption = Annotated[
    Bos,
    typer.Option(
        "--bos",
        help="Beginning-of-sequence token (BOS) at the start of every window. default: what the tokenizer puts before "
        "any text, BOS or nothing; each: always; none: never.",
    ),
]
TextFieldOption = Annotated[
    str | None,
    typer.Option(
        "--text-field",
        metavar="NAME",
        help="Field of the data set's records that holds the text. A list of chat messages becomes text through the "
        "tokenizer's chat template.",
        show_default="text, or else messages",
    ),
]
MaxWindowsOption = Annotated[
    int | None,
    typer.Option(
        "--max-windows", min=1, help="Number of windows to score, from the start of the text.", show_default="all"
    ),
]
BaselineOption = Annotated[
    str | None,
    typer.Option(
        "--baseline",
        metavar="MODEL",
        help="Original model, scored on the same windows: adds its perplexity, the KL divergence from it and the top-1 "
        f"agreement with it. Takes {MODEL_FORMS}.",
    ),
]
ResidentOption = Annotated[
    Resident,
    typer.Option(
        "--resident",
        help="Form of quantized weights in memory: packed, int8 (twice as large at 4 bits, faster), or auto: int8 if "
        "it takes at most a quarter of the free memory, else packed.",
    ),
]

FolderOption = Annotated[
    Path | None,
    typer.Option(
        "--output",
        metavar="DIR",
        help="Folder to write. It must be new or empty, or hold an unfinished run of the same command.",
        show_default="a new folder, named after the model",
    ),
]
ReportOption = Annotated[
    Path | None,
    typer.Option(
        "--output",
        metavar="FILE.json",
        help="JSON file for the result and everything needed to repeat it. Without it, the result is only printed.",
        callback=writable,
    ),
]
