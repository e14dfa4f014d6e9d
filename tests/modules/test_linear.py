"""A QuantizedLinear against dense float64 arithmetic on what its words and its coded inputs stand for."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nestquant_cli.codecs.nested.centered import CenteredCode
from nestquant_cli.codecs.nested.code import ScaledCode
from nestquant_cli.codecs.nested.linear import NestedLinear
from nestquant_cli.codecs.row_scale import row_scale_bits, row_scale_of
from nestquant_cli.codecs.vectors import Rounded, VectorCode
from nestquant_cli.e8.shape import shape_for_bits
from nestquant_cli.kernels import for_device
from nestquant_cli.modules.inputs import InputQuantizer
from nestquant_cli.modules.linear import QuantizedLinear
from nestquant_cli.modules.ways import float_product
from tests.families import gaussian, relative_error

FOUR = ScaledCode(shape_for_bits(4).with_multipliers((3, 4, 5, 6, 9)), 0.9 / 13 / 2)
SIX = ScaledCode(shape_for_bits(6).with_multipliers((3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 17)), 0.4 / 46 / 2)
IN, OUT = 64, 24


def centered(scaled: ScaledCode) -> CenteredCode:
    """With a center that about half of all Gaussian tokens are nearer to than to the origin."""
    return CenteredCode(scaled, (bytes(scaled.pack(0.05 * gaussian(1, IN, seed=9))[0].tolist()),))


TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def make(
    weight: ScaledCode | None,
    act: VectorCode | None,
    in_features: int = IN,
    out_features: int = OUT,
    dtype: torch.dtype = torch.float32,
) -> QuantizedLinear:
    """A layer with random words of a Gaussian matrix, and a bias."""
    source = InputQuantizer(in_features, 1, act)
    code = None if weight is None else weight.code
    layer = NestedLinear(in_features, out_features, True, source, code, dtype)
    assert layer.bias is not None
    layer.bias.data = gaussian(out_features, seed=5).to(dtype)
    W = gaussian(out_features, in_features, seed=6) * torch.linspace(0.5, 2, out_features)[:, None]
    if weight is None:
        layer.weight.data = W.to(dtype)
        return layer
    rotated = source.rotate(W)
    layer.row_scale = row_scale_bits(weight.row_scale(rotated))
    kernels = for_device(W.device)
    v, index, _ = kernels.quantize(rotated, row_scale_of(layer.row_scale), weight.code)
    layer.words = kernels.pack(v, index, weight.code)
    assert relative_error(layer.dequantized(), W) < 0.15
    return layer


def dense(layer: QuantizedLinear, x: Tensor) -> Tensor:
    """The product in float64, every factor dequantized."""
    source = layer.source
    coded = source.unrotate(source.quantize(source.rotate(x)).dequantized()).double()
    assert layer.bias is not None
    y = coded @ layer.dequantized().double().t() + layer.bias.double()
    return y.view(*x.shape[:-1], layer.out_features)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("weight", "act"),
    [
        *((FOUR, FOUR), (FOUR, None), (None, FOUR), (SIX, SIX), (SIX, FOUR), (FOUR, SIX), (SIX, None)),
        *((FOUR, centered(FOUR)), (None, centered(FOUR)), (SIX, centered(SIX)), (FOUR, centered(SIX))),
    ],
    ids=["w4a4", "w4", "a4", "w6a6", "w6a4", "w4a6", "w6", "w4a4c", "a4c", "w6a6c", "w4a6c"],
)
@pytest.mark.parametrize("tokens", [2, 40])
def test_products_equal_dense_arithmetic(
    weight: ScaledCode | None, act: VectorCode | None, dtype: torch.dtype, tokens: int
) -> None:
    layer = make(weight, act, dtype=dtype)
    x = gaussian(2, tokens, IN, seed=2).to(dtype)
    y = layer(x)
    if isinstance(act, CenteredCode):
        marks = layer.source(x).centered
        assert marks is not None and marks.any() and not marks.all()
    assert y.shape == (2, tokens, OUT) and y.dtype == dtype
    assert relative_error(y, dense(layer, x)) < TOLERANCE[dtype]


@pytest.mark.parametrize(("in_features", "out_features"), [(20, 5), (7, 1), (72, 13), (1, 3)])
@pytest.mark.parametrize("act", [FOUR, None], ids=["a4", "a16"])
def test_odd_widths(in_features: int, out_features: int, act: ScaledCode | None) -> None:
    source = InputQuantizer(in_features, 1, act)
    layer = NestedLinear(in_features, out_features, True, source, FOUR.code, torch.float32)
    layer.words = torch.randint(0, 256, layer.words.shape, dtype=torch.uint8)  # any bytes decode to something
    layer.row_scale = row_scale_bits(torch.rand(out_features) + 0.5)
    x = gaussian(6, in_features, seed=3)
    coded = source.quantize(source.rotate(x)).dequantized().double()  # in the rotated basis: padding carries noise too
    weight = layer.decoded().double() * row_scale_of(layer.row_scale).double()[:, None]
    torch.testing.assert_close(layer(x).double(), coded @ weight.t(), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("shape", [(1, IN), (IN,), (0, IN), (2, 0, IN), (1, 1, 1, IN)])
@pytest.mark.parametrize("layer", [make(FOUR, FOUR), make(FOUR, None), make(None, FOUR)], ids=["w4a4", "w4", "a4"])
def test_any_number_of_tokens(layer: QuantizedLinear, shape: tuple[int, ...]) -> None:
    x = gaussian(*shape)
    y = layer(x)
    assert y.shape == (*shape[:-1], OUT)
    torch.testing.assert_close(y.double(), dense(layer, x), rtol=1e-4, atol=1e-4)


def test_a_token_does_not_depend_on_its_neighbours() -> None:
    """Integer sums are exact; only the float rotation in front may round otherwise in a batch."""
    layer, x = make(FOUR, FOUR), gaussian(7, IN)
    torch.testing.assert_close(layer(x)[3:4], layer(x[3:4]), rtol=1e-5, atol=1e-5)


def test_large_inputs_do_not_overflow_in_float16() -> None:
    layer = make(FOUR, None, in_features=512, dtype=torch.float16)
    x = 500 * gaussian(4, 512).half()
    layer.row_scale = row_scale_bits(row_scale_of(layer.row_scale) / 100)
    y = layer(x)
    assert torch.isfinite(y).all()
    assert relative_error(y, dense(layer, x)) < 2e-3
    assert not layer(torch.zeros(1, 512, dtype=torch.float16)).sub(layer.bias).any()


def test_wide_codes_are_taken_in_float32() -> None:
    """Entries above 127 are not exact in bfloat16, so the product must not be taken in it."""
    a, v = Rounded(gaussian(3, 16), None), torch.full((2, 16), 301, dtype=torch.int16)
    exact = a.values.double() @ v.double().t()
    torch.testing.assert_close(float_product(a, v, torch.bfloat16).double(), exact, rtol=1e-5, atol=1e-3)


def test_casts_leave_row_scales_and_words_as_they_are() -> None:
    layer = make(FOUR, FOUR)
    words, scale = layer.words.clone(), layer.row_scale.clone()
    for cast in (layer.half(), layer.bfloat16(), layer.to(torch.float64), layer.float()):
        assert torch.equal(cast.words, words) and torch.equal(cast.row_scale, scale)
    assert layer.bias is not None and layer.bias.dtype == torch.float32


def test_the_shift_follows_the_weight() -> None:
    """What was computed for one weight must not serve another, in either form."""
    layer, other = make(FOUR, centered(FOUR)), make(FOUR, centered(FOUR))
    x = gaussian(40, IN, seed=2)
    y = layer(x)
    assert layer.hold_int8() and torch.equal(layer(x), y)
    other.words = other.words.flip(0)
    layer.load_state_dict(other.state_dict())
    assert torch.equal(layer(x), other(x)) and not torch.equal(layer(x), y)


def test_copies_and_state_dicts_round_trip() -> None:
    layer, x = make(FOUR, FOUR), gaussian(3, IN)
    y = layer(x)
    assert torch.equal(copy.deepcopy(layer)(x), y)
    fresh = NestedLinear(IN, OUT, True, InputQuantizer(IN, 1, FOUR), FOUR.code, torch.float32)
    assert set(layer.state_dict()) == {"words", "row_scale", "bias"}
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh(x), y)


def test_copies_of_several_layers_go_on_sharing_their_input() -> None:
    first = make(FOUR, FOUR)
    second = NestedLinear(IN, OUT, False, first.source, FOUR.code, torch.float32)
    twins: Any = copy.deepcopy(torch.nn.ModuleList([first, second]))
    assert twins[0].source is twins[1].source is not first.source


def test_packed_layers_stay_small_and_answer_for_their_dtype() -> None:
    layer = make(FOUR, FOUR, dtype=torch.bfloat16)
    assert sum(t.nbytes for t in layer.state_dict().values()) == OUT * (IN // 8 * 4 + 2 + 2)
    assert layer.weight.numel() == 0 and layer.weight.dtype == torch.bfloat16
    with pytest.raises(AttributeError, match="nothing"):
        _ = layer.nothing
    assert "in_features=64, out_features=24, bias=True, q=13" in repr(layer)


def test_a_layer_without_bias() -> None:
    layer = make(FOUR, FOUR)
    layer.bias = None
    x = gaussian(3, IN)
    coded = layer.source(x).dequantized().double()
    weight = layer.decoded().double() * row_scale_of(layer.row_scale).double()[:, None]
    torch.testing.assert_close(layer(x).double(), F.linear(coded, weight), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("weight", "act"), [(FOUR, FOUR), (FOUR, None), (None, FOUR), (SIX, centered(SIX))])
@pytest.mark.parametrize("int8", [False, True])
def test_gradients_are_those_of_an_input_that_is_not_rounded(
    weight: ScaledCode | None, act: VectorCode | None, int8: bool
) -> None:
    layer, x = make(weight, act), gaussian(2, 3, IN).requires_grad_()
    if int8:
        layer.hold_int8()
    assert layer.bias is not None
    layer.bias.requires_grad_()
    y = layer(x)
    assert torch.equal(y, layer(x.detach()))  # and the forward is what it always is
    upstream = gaussian(2, 3, OUT, seed=8)
    y.backward(upstream)
    assert x.grad is not None and layer.bias.grad is not None
    torch.testing.assert_close(x.grad, upstream @ layer.dequantized(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer.bias.grad, upstream.sum((0, 1)), rtol=1e-4, atol=1e-4)
