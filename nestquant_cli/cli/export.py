"""`nestquant export`: a packed checkpoint in a format of other tools."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from . import console
from .config import ConfigOption, print_settings
from .options import CheckpointArgument, FolderOption


class Format(str, Enum):
    """Format of an exported checkpoint."""

    compressed_tensors = "compressed-tensors"


FormatOption = Annotated[Format, typer.Option("--format", help="Format of the exported checkpoint.")]


def export_checkpoint(
    context: typer.Context,
    checkpoint: CheckpointArgument,
    format: FormatOption = Format.compressed_tensors,
    output: FolderOption = None,
    config: ConfigOption = None,
) -> None:
    """Write a packed checkpoint for tools that know no lattices: the same integers and scales, to the bit.

    A nested code takes 8 bits per weight in the exported format. Only weights are exported: activations, keys and
    values stay in 16 bits.
    """
    from ..export.export import export

    folder = output if output is not None else Path(f"{checkpoint.absolute().name}-{format.value}")
    console.note(f"writing the integers of {checkpoint} to {folder} in the {format.value} format")
    print_settings(context)
    written = export(checkpoint, folder)
    if written.left_out:
        console.line(f"{' and '.join(written.left_out)} stay in 16 bits in the export")
    console.line(f"{written.matrices} matrices of {written.bits}-bit integers")
    if written.transforms:
        console.line("load it with trust_remote_code=True: transformers itself does not apply its input transforms")
        console.line("vLLM does not apply them as stored: serve the packed checkpoint itself")
    console.print_ending(folder)
