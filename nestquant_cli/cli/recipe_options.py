"""Option types of the commands that quantize or calibrate: the settings of a recipe, and what a run may use."""

from pathlib import Path
from typing import Annotated

import typer

from .options import finite, offer

DEFAULT_BUDGET = "2GiB"
BITS_HELP = "2 to 8 in steps of 1/8, or 16 for no quantization"
PART_DEFAULT = "4, or 16 if bits are given for other parts only"

BitsOption = Annotated[
    float | None,
    typer.Option(
        "--bits",
        parser=finite,
        help=f"Bits of weights, activations, keys and values (with glvq: of weights only): {BITS_HELP}.",
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
ActBitsOption = Annotated[
    float | None,
    typer.Option("--act-bits", parser=finite, help=f"Bits of activations: {BITS_HELP}.", show_default=PART_DEFAULT),
]
KvBitsOption = Annotated[
    float | None,
    typer.Option(
        "--kv-bits",
        parser=finite,
        help=f"Bits of the keys and values in the cache: {BITS_HELP}.",
        show_default=PART_DEFAULT,
    ),
]
TABLE_BITS_HELP = "4 to 8 in steps of 1/8, or 16 for no quantization"
EmbeddingBitsOption = Annotated[
    float,
    typer.Option(
        "--embedding-bits",
        parser=finite,
        help=f"Bits of the input embedding: {TABLE_BITS_HELP}. At 8 its rows are integers with a scale each. Where it "
        "is the output head, too, both have the same.",
    ),
]
HeadBitsOption = Annotated[
    float,
    typer.Option("--head-bits", parser=finite, help=f"Bits of the output head: {TABLE_BITS_HELP}."),
]
MethodOption = Annotated[
    str,
    typer.Option(
        "--method",
        help="Code of the quantized numbers: nestquant (nested E8 lattices), integer, or glvq (learned lattices, "
        "weights only).",
        autocompletion=offer("nestquant", "integer", "glvq"),
    ),
]
ActMethodOption = Annotated[
    str | None,
    typer.Option(
        "--act-method",
        help="Code of the activations: nestquant or integer. With integers of 8 bits Linears multiply int8 by int8.",
        show_default="integer at 8 bits, else --method",
        autocompletion=offer("nestquant", "integer"),
    ),
]
RotationOption = Annotated[
    str,
    typer.Option(
        "--rotation",
        help="Rotation of inputs, keys and values before rounding: none, hadamard or learned.",
        autocompletion=offer("none", "hadamard", "learned"),
    ),
]
FeedbackOption = Annotated[
    str,
    typer.Option(
        "--feedback",
        help="Rounding of weights. ldlq: weights that are rounded later make up for the errors of those before them "
        "in the row; none: each is rounded by itself.",
        autocompletion=offer("none", "ldlq"),
    ),
]
PathsOption = Annotated[
    int | None,
    typer.Option(
        "--paths",
        help="Number of candidate roundings that the search over a row of weights keeps, 1 to 64. More take longer "
        "and lower the error of weights that are quantized alone; 1 is plain LDLQ.",
        show_default="8 for weights alone, glvq 16, else 1",
    ),
]
QaOption = Annotated[
    bool,
    typer.Option(
        "--qa/--no-qa",
        help="Fit the weights to the quantized inputs that they will meet (QA-LDLQ, the default), or to "
        "unquantized ones.",
    ),
]
CenteringOption = Annotated[
    bool,
    typer.Option(
        "--centering/--no-centering",
        help="Let codes of activations and keys subtract a center that all tokens share (on by default).",
    ),
]
ChannelScalesOption = Annotated[
    bool,
    typer.Option(
        "--channel-scales/--no-channel-scales",
        help="Multiply the channels of inputs that are rounded by factors in front of the rotation, and the columns of "
        "their weights by the reciprocals (off by default).",
    ),
]
AllExpertsOption = Annotated[
    bool,
    typer.Option(
        "--all-experts/--routed-experts",
        help="Calibrate each expert on every token, or on the tokens that the router sends it (the default). All "
        "tokens take as many products in a layer as it has experts.",
    ),
]
TensorParallelOption = Annotated[
    int,
    typer.Option(
        "--tensor-parallel",
        metavar="N",
        help="Rotate and round the inputs of row-parallel matrices (o_proj, down_proj) in N parts, each by itself, so "
        "that up to N processes can serve the checkpoint in tensor parallel and communicate nothing more.",
    ),
]
DampingOption = Annotated[
    float,
    typer.Option(
        "--damping",
        parser=finite,
        help="Damping of the Hessian H: this fraction of its mean diagonal is added to its diagonal.",
    ),
]
OutputMetricOption = Annotated[
    str,
    typer.Option(
        "--output-metric",
        help="What errors of outputs cost. none: all the same; two-sided: what gradients say, and errors are fed from "
        "row to row of a weight, too. Takes backward passes with the whole model in memory.",
        autocompletion=offer("none", "two-sided"),
    ),
]
TuneOption = Annotated[
    bool | None,
    typer.Option(
        "--tune/--no-tune",
        help="After quantizing, tune row scales, norms and biases as 'nestquant tune' does (off by default; a recipe "
        "can set it).",
    ),
]
CalibrationOption = Annotated[
    Path | None,
    typer.Option(
        "--calibration",
        metavar="DIR",
        help="Folder that 'nestquant calibrate' wrote for this model. Without it, the model is calibrated in this run.",
    ),
]
PlanOption = Annotated[
    bool, typer.Option("--plan", help="Print layers, bytes, memory and time, and stop before any work.")
]
ResumeOption = Annotated[
    bool,
    typer.Option(
        "--resume/--no-resume",
        help="Resume an unfinished run of the same command in the output folder (the default), or start over.",
    ),
]
MemoryOption = Annotated[
    str,
    typer.Option(
        "--memory-budget",
        metavar="SIZE",
        help="Memory for the hidden states of the calibration windows, such as 500MB or 2GiB. What does not fit goes "
        "to a temporary file next to the output. Statistics of experts take at most half as much besides, in several "
        "passes over the text if need be.",
    ),
]
