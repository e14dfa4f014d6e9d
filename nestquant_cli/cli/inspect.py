"""`nestquant inspect`: real bits per weight of a packed checkpoint, from its bytes."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import console
from .config import ConfigOption, print_settings, settings
from .options import CheckpointArgument, ReportOption, offer

if TYPE_CHECKING:
    from ..checkpoint.byte_counts import Inspection, Matrix

MatricesOption = Annotated[
    bool,
    typer.Option(
        "--matrices", help="List every matrix with its code and bits. Without it, there is one row per decoder layer."
    ),
]

KernelsOption = Annotated[
    bool,
    typer.Option(
        "--kernels", help="List what computes each operation on --device, and how the matrices are multiplied there."
    ),
]
KernelDeviceOption = Annotated[
    str,
    typer.Option(
        "--device",
        help="Device that --kernels is about: auto (a GPU if there is one, else the CPU), cpu or cuda; it need not be "
        "there.",
        autocompletion=offer("auto", "cpu", "cuda"),
    ),
]


def inspect_checkpoint(
    context: typer.Context,
    checkpoint: CheckpointArgument,
    matrices: MatricesOption = False,
    kernels: KernelsOption = False,
    device: KernelDeviceOption = "auto",
    output: ReportOption = None,
    config: ConfigOption = None,
) -> None:
    """Count the real bits per weight of a packed checkpoint from the bytes on disk, and print its recipe."""
    from ..checkpoint.inspect import inspect
    from ..storage.files import write_json

    console.note(f"counting the bytes of {checkpoint}")
    print_settings(context)
    inspection = inspect(checkpoint)
    _print_parts(inspection)
    if inspection.matrices:
        _print_layers(inspection)
    _print_staying(inspection)
    if matrices:
        columns = ["matrix", "out × in", "code", "multipliers", "word bits", "bits/weight"]
        console.table(columns, [_matrix_row(matrix) for matrix in inspection.matrices])
    choice = _kernels(checkpoint, device) if kernels else {}
    _print_summary(inspection)
    if output is not None:
        write_json(output, inspection.as_json() | choice | {"settings": settings(context)})
    console.print_ending(output, "verify", checkpoint)


def _kernels(checkpoint: Path, device: str) -> dict[str, object]:
    """Prints the kernels of a checkpoint on a device and returns them as an entry of the report."""
    from ..checkpoint.kernel_choice import kernel_choice

    choice = kernel_choice(checkpoint, device)
    title = f"Kernels on {choice.device}: {choice.family}"
    console.table(["operation", "computed by"], choice.operations.items(), title=title)
    rows = [(product.way, product.tokens, product.resident, product.matrices) for product in choice.products]
    console.table(["what is multiplied", "tokens", "in memory", "matrices"], rows, title="Products")
    return {"kernels": choice.as_json()}


def _print_parts(inspection: "Inspection") -> None:
    weights = inspection.quantized_weights
    rows = []
    for part in inspection.parts:
        bits = f"{8 * part.bytes / weights:.4f}" if weights and part.group == "quantized layers" else ""
        rows.append((f"{part.group}: {part.name}", f"{part.bytes:,}", bits))
    rows.append(("all files", f"{inspection.file_bytes:,}", ""))
    console.table(["part", "bytes", "bits/weight"], rows, title=f"{inspection.folder}")


def _print_layers(inspection: "Inspection") -> None:
    rows = []
    for name, matrices in inspection.layers().items():
        weights = sum(matrix.weights for matrix in matrices)
        spent = sum(matrix.word_bytes + matrix.scale_bytes for matrix in matrices)
        codes = sorted({matrix.description for matrix in matrices})
        rows.append((name, len(matrices), f"{weights:,}", "; ".join(codes), f"{spent:,}", f"{8 * spent / weights:.4f}"))
    columns = ["layer", "matrices", "weights", "code", "bytes", "bits/weight"]
    console.table(columns, rows, title="Words and row scales of each layer")


def _print_staying(inspection: "Inspection") -> None:
    kinds = inspection.staying.matrices
    every = sum(kind.entries for kind in kinds) / inspection.staying.share if kinds else 1
    rows: list[tuple[object, ...]] = [
        (
            f"{kind.name}, never called" if kind.uncalled else kind.name,
            kind.layers,
            " × ".join(map(str, kind.shape)),
            f"{kind.entries:,}",
            f"{kind.entries / every:.3%}",
        )
        for kind in kinds
    ]
    if rows:
        rows.append(
            ("all of them", "", "", f"{sum(kind.entries for kind in kinds):,}", f"{inspection.staying.share:.3%}")
        )
        columns = ["matrix", "layers", "shape", "entries", "share of the layers"]
        console.table(columns, rows, title="Matrices of the decoder layers that stay in 16 bits")


def _matrix_row(matrix: "Matrix") -> tuple[object, ...]:
    multipliers = ",".join(str(m) for m in matrix.code["multipliers"] or ())
    shape = f"{matrix.shape[0]} × {matrix.shape[1]}"
    return matrix.name, shape, matrix.description, multipliers, matrix.word_bits, f"{matrix.bits_per_weight:.4f}"


def _print_summary(inspection: "Inspection") -> None:
    nominal = ", ".join(f"{part} {bits}" for part, bits in inspection.bits.items())
    if nominal:
        console.line(f"bits of the codes: {nominal}")
    if inspection.recipe:
        settings = ", ".join(f"{name} {value}" for name, value in inspection.recipe.items() if value is not None)
        console.line(f"recipe: {settings}")
    if inspection.entropy_bits is not None:
        console.line(f"words with entropy-coded β would take {inspection.entropy_bits:.4f} bits per weight (not done)")
    console.line(
        f"{inspection.bits_per_parameter:.4f} bits per parameter of the whole model, without tokenizer and records "
        f"({inspection.parameters:,} parameters)"
    )
    if inspection.bits_per_weight is None:
        console.line("no weight is quantized: all of them are kept in 16 bits")
    else:
        console.line(
            f"{inspection.bits_per_weight:.4f} bits per quantized weight, counting all bytes of the quantized layers "
            f"({inspection.quantized_weights:,} weights)"
        )
