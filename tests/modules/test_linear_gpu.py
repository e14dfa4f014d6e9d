"""Which of the GPU's products a layer takes, and that they agree with decoding first."""

from collections.abc import Callable

import pytest
import torch

from nestquant_cli.codecs.nested.code import ScaledCode
from nestquant_cli.codecs.nested.linear import NestedLinear
from nestquant_cli.codecs.row_scale import row_scale_bits, row_scale_of
from nestquant_cli.e8.shape import shape_for_bits
from nestquant_cli.modules import multiply
from nestquant_cli.modules.inputs import InputQuantizer
from tests.families import gaussian, relative_error

pytest.importorskip("triton", reason="triton is not installed")

from nestquant_cli.kernels.device_kernels import of_family
from nestquant_cli.kernels.gpu import product as gpu_product
from nestquant_cli.kernels.reference import nested as reference

FOUR = ScaledCode(shape_for_bits(4).with_multipliers((3, 4, 5, 6, 9)), 0.9 / 13 / 2)
SIX = ScaledCode(shape_for_bits(6).with_multipliers((3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 17)), 0.4 / 46 / 2)
MANY = gpu_product.FEW_TOKENS + 1


def make(weight: ScaledCode, act: ScaledCode | None, dtype: torch.dtype) -> NestedLinear:
    layer = NestedLinear(60, 24, False, InputQuantizer(60, 1, act), weight.code, dtype)
    rotated = layer.source.rotate(gaussian(24, 60, seed=6))
    layer.row_scale = row_scale_bits(weight.row_scale(rotated))
    v, index, _ = reference.quantize(rotated, row_scale_of(layer.row_scale), weight.code)
    layer.words = reference.pack(v, index, weight.code)
    return layer


@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter does not run beside a CUDA device")
@pytest.mark.parametrize(
    ("weight", "act", "tokens", "dtype", "taken"),
    [
        (FOUR, FOUR, 3, torch.bfloat16, "product"),
        (FOUR, None, 1, torch.float16, "product_one"),
        (FOUR, SIX, 2, torch.float32, "product_one"),
        (SIX, None, 2, torch.float32, "product_one"),
        (FOUR, None, MANY, torch.bfloat16, "product_many"),
        (FOUR, None, MANY, torch.float32, None),
        (SIX, None, MANY, torch.bfloat16, None),
        (FOUR, None, gpu_product.FUSED_TOKENS + 1, torch.bfloat16, None),
    ],
)
def test_products(
    monkeypatch: pytest.MonkeyPatch,
    weight: ScaledCode,
    act: ScaledCode | None,
    tokens: int,
    dtype: torch.dtype,
    taken: str | None,
) -> None:
    layer, x = make(weight, act, dtype), gaussian(tokens, 60).to(dtype)
    expected = layer(x)
    calls: list[str] = []

    def noting(name: str) -> Callable[..., torch.Tensor]:
        function = getattr(gpu_product, name)
        return lambda *arguments: (calls.append(name), function(*arguments))[1]

    for name in ("product", "product_one", "product_many"):
        monkeypatch.setattr(gpu_product, name, noting(name))
    monkeypatch.setattr(multiply, "for_device", lambda device: of_family("gpu"))
    layer.forget()  # the way that was chosen for the CPU
    y = layer(x)
    assert calls == ([] if taken is None else [taken])
    assert y.dtype == dtype and relative_error(y, expected.double()) < 1e-2
    if taken == "product":
        assert torch.equal(y, expected)


def test_gradients_take_the_way_that_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiply, "for_device", lambda device: of_family("gpu"))
    x = gaussian(2, 60).requires_grad_()
    make(FOUR, None, torch.float32)(x).sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
