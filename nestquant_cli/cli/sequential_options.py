"""Option types of a sequential calibration."""

from typing import Annotated

import typer

from .options import finite

SequentialOption = Annotated[
    bool,
    typer.Option(
        "--sequential/--no-sequential",
        help="Calibrate each matrix with the matrices before it already quantized (off by default). Needs a recipe "
        "that quantizes weights, and four times the calibration passes.",
    ),
]
DriftCorrectionOption = Annotated[
    float | None,
    typer.Option(
        "--drift-correction",
        parser=finite,
        help="How much of the errors of the matrices before it a matrix corrects with --sequential, from 0 to 1. "
        "Default: 1; 0.5 with quantized activations, whose noise a full correction takes for errors.",
    ),
]
ResidualCorrectionOption = Annotated[
    float | None,
    typer.Option(
        "--residual-correction",
        parser=finite,
        help="How much of the residual stream's error the matrices that are added to it (o_proj, down_proj) correct "
        "with --sequential, from 0 to 1. Default: 0.",
    ),
]
