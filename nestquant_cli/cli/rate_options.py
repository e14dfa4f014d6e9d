"""Options for bits that differ from matrix to matrix, and from input to input."""

from typing import Annotated

import typer

from .options import offer

AllocationOption = Annotated[
    str,
    typer.Option(
        "--allocation",
        help="Bits of the matrices. uniform: the same for all; mixed: more where errors cost more, with the mean that "
        "--weight-bits asks for.",
        autocompletion=offer("uniform", "mixed"),
    ),
]
ActAllocationOption = Annotated[
    str,
    typer.Option(
        "--act-allocation",
        help="Bits of the inputs of matrices. uniform: the same for all; mixed: more where errors cost more, nested "
        "codes of at most 4.25 bits or integers of 5 to 8, with the mean that --act-bits asks for.",
        autocompletion=offer("uniform", "mixed"),
    ),
]
TieInputsOption = Annotated[
    bool,
    typer.Option(
        "--tie-inputs/--no-tie-inputs",
        help="With --allocation mixed: give matrices with the same input (q, k and v; gate and up) the same bits (off "
        "by default).",
    ),
]
