"""Random matrices of every codec, as a layout has them, for tests of vLLM's layers."""

from typing import Any

import torch
from torch import Tensor

from nestquant_cli.codecs.registry import codec_of, fit_vectors, shape_of
from nestquant_cli.codecs.vectors import VectorCode
from nestquant_cli.integrations.vllm.names import Rows
from nestquant_cli.integrations.vllm.pieces import Piece
from nestquant_cli.modules.layout import LinearLayout
from nestquant_cli.quantization.factors import Feedback
from tests.families import gaussian

IN = 64
Weight = tuple[str, float, Any] | None  # codec, bits, settings; None for a weight in 16 bits
NESTED: Weight = ("nestquant", 4, None)
INTEGER: Weight = ("integer", 4, None)
ALL: list[Weight] = [
    NESTED,
    ("nestquant", 3, None),
    ("nestquant", 6, None),
    INTEGER,
    ("integer", 4, {"group": 16, "symmetric": False}),
    ("integer", 8, None),
    ("glvq", 2, None),
    None,
]


def activations(bits: float | None) -> VectorCode | None:
    return None if bits is None else fit_vectors(gaussian(64, IN, seed=4), shape_of("nestquant", bits, None, "act"), 0)


def matrix(weight: Weight, rows: int, seed: int) -> tuple[Piece, dict[str, Tensor]]:
    """A random matrix as the layout has it, and its stored tensors."""
    values = gaussian(rows, IN, seed=seed) * torch.linspace(0.5, 2, rows)[:, None]
    place = Rows(f"m{seed}", (seed,), rows)
    if weight is None:
        return Piece(place, LinearLayout(IN, rows, False, "x", None)), {"weight": values}
    shape = shape_of(weight[0], weight[1], weight[2], "weight")
    rounded = codec_of(shape).quantize(Feedback(values, None, None, 0.0), [rows], shape, 0, 1)
    return Piece(place, LinearLayout(IN, rows, False, "x", rounded.codes[0])), rounded.tensors[0]
