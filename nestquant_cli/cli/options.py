"""Option types that commands share, so that a name means the same everywhere; their defaults are each command's own."""

import math
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

DEFAULT_BUDGET = "2GiB"

MODEL_HELP = "A Hugging Face id (or ID@REV), a model folder, a .gguf file, a checkpoint packed by nestquant, or 'demo'."
DATASET_HELP = (
    "wikitext2, c4, 'demo', a .txt, .jsonl, .json or .parquet file (also .gz), a folder of save_to_disk, or a data set "
    "on the Hub, ORG/NAME or ORG/NAME:CONFIG."
)


def offer(*values: str) -> Callable[[str], list[str]]:
    """What a shell completes an option to; other values are taken, too. Where none fits, it offers files."""
    return lambda incomplete: [value for value in values if value.startswith(incomplete)]


def finite(text: str | float) -> float:
    """Parses the value of an option that takes a number; neither NaN nor infinity is one.

    Raises:
        typer.BadParameter: it is none.
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
    """Refuses a file that cannot be written before the work that it is for, not behind it."""
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
    """The form of quantized weights in memory."""

    packed = "packed"
    int8 = "int8"
    auto = "auto"


ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help=MODEL_HELP, show_default=False, autocompletion=offer("demo"))
]
RevisionOption = Annotated[
    str | None,
    typer.Option(
        "--revision", metavar="REV", help="Branch, tag or commit of a MODEL on the Hub; ID@REV says the same anywhere."
    ),
]
CheckpointArgument = Annotated[
    Path,
    typer.Argument(metavar="CKPT", help="A packed checkpoint written by 'nestquant quantize'.", show_default=False),
]

DatasetOption = Annotated[
    str,
    typer.Option("--dataset", metavar="DATASET", help=DATASET_HELP, autocompletion=offer("wikitext2", "c4", "demo")),
]
SplitOption = Annotated[str, typer.Option("--split", help="Part of the dataset; a local file is read whole.")]
SamplesOption = Annotated[
    int, typer.Option("--samples", min=1, help="Number of calibration windows; the seed chooses them.")
]
SeqlenOption = Annotated[int, typer.Option("--seqlen", min=2, help="Tokens in each window.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Seed of all random choices.")]
DeviceOption = Annotated[
    str,
    typer.Option(
        "--device",
        help="Device to run on: auto (a GPU if there is one), cpu, cuda, cuda:1 …",
        autocompletion=offer("auto", "cpu", "cuda"),
    ),
]
MemoryOption = Annotated[
    str,
    typer.Option(
        "--memory-budget",
        metavar="SIZE",
        help="Memory for the hidden states of the calibration windows, such as 500MB; the rest goes to a temporary "
        "file beside the result.",
    ),
]
BosOption = Annotated[
    Bos,
    typer.Option(
        "--bos",
        help="Beginning-of-sequence token: default (as the tokenizer does, once), each (in every window) or none.",
    ),
]
WindowBosOption = Annotated[
    Bos,
    typer.Option(
        "--bos",
        help="What windows begin with. default: what the tokenizer puts in front of any text, BOS or nothing; each: "
        "BOS; none: nothing.",
    ),
]
TextFieldOption = Annotated[
    str | None,
    typer.Option(
        "--text-field",
        metavar="NAME",
        help="Field of the data set's records: text, or messages, which the tokenizer's chat template makes text of.",
        show_default="text, or else messages",
    ),
]
MaxWindowsOption = Annotated[
    int | None, typer.Option("--max-windows", min=1, help="Score only the first N windows.", show_default="all")
]
BaselineOption = Annotated[
    str | None,
    typer.Option(
        "--baseline", metavar="MODEL", help="Compare with MODEL on the same windows: KL divergence and top-1 agreement."
    ),
]

ResidentOption = Annotated[
    Resident,
    typer.Option(
        "--resident",
        help="Form of quantized weights in memory: packed, int8 (twice as large, faster), or auto, which is int8 if "
        "that takes at most a quarter of the free memory.",
    ),
]

FolderOption = Annotated[
    Path | None,
    typer.Option(
        "--output",
        metavar="DIR",
        help="Folder to write; it must be new or empty, or hold an unfinished run of the same command.",
    ),
]
ReportOption = Annotated[
    Path | None,
    typer.Option(
        "--output",
        metavar="FILE.json",
        help="Also write the result with its whole protocol as JSON.",
        callback=writable,
    ),
]
