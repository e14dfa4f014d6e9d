"""What the processes of a tensor-parallel model compute of a row-parallel layer adds up to the layer, without vLLM."""

from typing import Any

import pytest
import torch
from torch import Tensor

from nestquant_cli.codecs.registry import codec_of, fit_heads, shape_of
from nestquant_cli.codecs.vectors import VectorCode
from nestquant_cli.integrations.vllm.layer import LayerInput, coded_layer
from nestquant_cli.integrations.vllm.names import Rows
from nestquant_cli.integrations.vllm.pieces import Piece
from nestquant_cli.integrations.vllm.shares import Share, has_parts, input_of_parts, some_columns, some_rows
from nestquant_cli.modules.layout import Layout, LinearLayout
from nestquant_cli.quantization.factors import Feedback
from nestquant_cli.rotation.seeds import ScaledSeed
from tests.families import gaussian, relative_error

FEATURES, ROWS, SEED = 128, 24, 3
CODECS: dict[str, tuple[str, float, Any]] = {
    "nested": ("nestquant", 4, None),
    "nested-33": ("nestquant", 4.125, None),
    "integer": ("integer", 4, None),
    "groups": ("integer", 3, {"group": 16, "symmetric": False}),
    "lattice": ("glvq", 2, {"group": 32}),
}


def activations(bits: float | None, parts: int, offset: float) -> VectorCode | None:
    """A code of inputs, with a center for each part where their entries have a mean."""
    if bits is None:
        return None
    tokens = (gaussian(256, FEATURES, seed=4) + offset).unflatten(1, (parts, -1)).transpose(0, 1)
    code = fit_heads(tokens, shape_of("nestquant", bits, None, "act"), 0, centering=True)
    assert code.centered == (offset > 0)
    return code


def made(
    codec: str, act: VectorCode | None, parts: int, factors: bool = False
) -> tuple[Layout, Piece, dict[str, Tensor]]:
    """A layout with one matrix whose input is in parts and may have factors of its channels, and its stored tensors."""
    method, bits, settings = CODECS[codec]
    shape = shape_of(method, bits, settings, "weight")
    rounded = codec_of(shape).quantize(Feedback(gaussian(ROWS, FEATURES), None, None, 0.0), [ROWS], shape, 0, 1)
    linear = LinearLayout(FEATURES, ROWS, False, "m", rounded.codes[0])
    layout = Layout(shape, None, None, SEED, {"m": linear}, {"m": act}, parts={"m": parts} if parts > 1 else {})
    if factors:
        layout.factors["m"] = bytes(torch.randint(30, 60, (FEATURES,), dtype=torch.uint8).tolist())
    return layout, Piece(Rows("m", (0,), ROWS), linear), rounded.tensors[0]


def whole(layout: Layout, piece: Piece, tensors: dict[str, Tensor], int8: bool, dtype: torch.dtype) -> Any:
    source = LayerInput(FEATURES, layout.seed_of("m"), layout.inputs["m"], None, layout.parts.get("m", 1))
    return coded_layer([piece], [dict(tensors)], lambda _: source, dtype, int8)


@pytest.mark.parametrize("codec", ["nested", "nested-33", "integer", "groups"])
@pytest.mark.parametrize(("bits", "offset"), [(None, 0.0), (4, 0.0), (4, 1.0), (8, 0.0)])
@pytest.mark.parametrize(("parts", "processes"), [(2, 2), (4, 2)])
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("factors", [False, True])
def test_products_with_parts_add_up(
    codec: str, bits: float | None, offset: float, parts: int, processes: int, int8: bool, factors: bool
) -> None:
    layout, piece, tensors = made(codec, activations(bits, parts, offset), parts, factors)
    assert has_parts(layout, "m", processes)
    for tokens in (1, 9):
        x = gaussian(tokens, FEATURES, seed=7) + offset
        total = torch.zeros(tokens, ROWS)
        for rank, taken in enumerate(x.chunk(processes, 1)):
            share = Share(rank, processes)
            own, loaded = some_columns(layout, piece, tensors, share)
            source = input_of_parts(layout, "m", share)
            assert source.parts == parts // processes and source.features == FEATURES // processes
            assert isinstance(source.seed, ScaledSeed) == factors
            layer = coded_layer([own], [loaded], lambda _, source=source: source, torch.float32, int8)
            total += layer.compute(taken.contiguous(), None)
        expected = whole(layout, piece, tensors, int8, torch.float32).compute(x, None)
        assert relative_error(total, expected) < 1e-5


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_those_of_the_whole_to_the_bit(codec: str, bits: float | None, dtype: torch.dtype) -> None:
    layout, piece, tensors = made(codec, activations(bits, 1, 0.0), 1)
    x = gaussian(9, FEATURES, seed=7).to(dtype)
    found = []
    for rank in range(5):  # of 24 rows, 4 or 5
        own, loaded = some_rows(piece, tensors, Share(rank, 5))
        source = LayerInput(FEATURES, SEED, layout.inputs["m"])
        layer = coded_layer([own], [loaded], lambda _, source=source: source, dtype, True)
        found.append(layer.compute(x, None))
    expected = whole(layout, piece, tensors, True, dtype).compute(x, None)
    torch.testing.assert_close(torch.cat(found, 1), expected, rtol=1e-6, atol=1e-6)


def test_who_has_to_exchange_inputs() -> None:
    assert not has_parts(made("nested", None, 1)[0], "m", 2)
    assert not has_parts(made("nested", None, 2)[0], "m", 4)
    assert not has_parts(made("lattice", None, 2)[0], "m", 2)
    assert has_parts(made("groups", None, 4)[0], "m", 4)
