import copy
import pickle

import pytest
import torch

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.rotation import transform
from nestquant_cli.rotation.transform import Rotation, rotation

WIDTHS = [64, 576, 1536, 4864, 5120, 11008, 13824, 14336, 13696, 29568]
SMALL = [1, 2, 3, 4, 5, 7, 12, 24, 36, 64, 80, 96, 112, 128, 172, 256, 576]


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("order", [n for n in {*SMALL, *WIDTHS} if n <= 1536])
def test_dense_matrix_is_orthogonal(order: int) -> None:
    r = rotation(order, 3).matrix().double()
    assert torch.allclose(r @ r.T, torch.eye(order, dtype=torch.float64), rtol=0, atol=1e-5)


@pytest.mark.parametrize("order", WIDTHS)
def test_fast_transform_is_orthogonal(order: int) -> None:
    r, x = rotation(order, 11), gaussian(6, order)
    y = r.apply(x)
    scale = x.norm(dim=-1).outer(x.norm(dim=-1))
    assert torch.allclose((y @ y.T) / scale, (x @ x.T) / scale, rtol=0, atol=1e-5)
    assert torch.allclose(r.inverse(y), x, rtol=0, atol=1e-5)
    assert torch.allclose(r.apply(r.inverse(x)), x, rtol=0, atol=1e-5)
    # ⟨Rx, z⟩ = ⟨x, Rᵀz⟩: the inverse is the transpose
    z = gaussian(6, order, seed=1)
    assert torch.allclose((y @ z.T) / scale, (x @ r.inverse(z).T) / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize("order", WIDTHS)
def test_unit_vectors_spread_evenly_over_their_block(order: int) -> None:
    r = rotation(order, 0)
    x = torch.zeros(order)
    x[order - 1] = 1
    y = r.apply(x)
    last = r.block_orders[-1]
    assert torch.allclose(y[-last:].abs() * last**0.5, torch.ones(last), rtol=0, atol=1e-5)
    assert not y[:-last].any()


@pytest.mark.parametrize("order", SMALL)
@pytest.mark.parametrize("lead", [(), (3,), (2, 3), (0,), (2, 0, 3)])
def test_apply_equals_the_dense_matrix(order: int, lead: tuple[int, ...]) -> None:
    r, x = rotation(order, 2), gaussian(*lead, order)
    dense = r.matrix()
    forward, backward = r.apply(x), r.inverse(x)
    assert forward.shape == backward.shape == x.shape
    assert forward.dtype == backward.dtype == torch.float32
    assert torch.allclose(forward, x @ dense.T, rtol=0, atol=1e-5)
    assert torch.allclose(backward, x @ dense, rtol=0, atol=1e-5)


def test_vectors_of_the_document() -> None:
    def ramp(order: int, seed: int) -> torch.Tensor:
        return rotation(order, seed).apply(torch.arange(1.0, order + 1))

    assert torch.allclose(ramp(6, 0), torch.tensor([1, -5, 0, 2, -7.7782, 0.7071]), rtol=0, atol=1e-4)
    expected = torch.tensor([-8.0829, -17.8979, -2.3094, 1.1547, 5.1962, -5.7735, 5.1962, -5.1962])
    assert torch.allclose(ramp(12, 0)[:8], expected, rtol=0, atol=1e-4)
    expected = torch.tensor([-3.6742, 1.2247, -15.1052, -8.5732, 29.8021, -7.7567, 13.4722, -4.4907])
    assert torch.allclose(ramp(24, 7)[:8], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("order", [12, 100, 576])
def test_pieces_give_what_the_whole_gives(order: int, monkeypatch: pytest.MonkeyPatch) -> None:
    r, x = rotation(order, 0), gaussian(7, 11, order)
    whole, back = r.apply(x), r.inverse(x)
    monkeypatch.setattr(transform, "_PIECE", 5 * order)
    assert torch.allclose(r.apply(x), whole, rtol=0, atol=1e-5)
    assert torch.allclose(r.inverse(x), back, rtol=0, atol=1e-5)


def test_non_contiguous_input() -> None:
    r, x = rotation(96, 0), gaussian(96, 5)
    assert torch.equal(r.apply(x.T), r.apply(x.T.contiguous()))
    heads = gaussian(2, 9, 4, 96).transpose(1, 2)
    assert torch.equal(r.apply(heads), r.apply(heads.contiguous()))
    assert torch.allclose(r.apply(gaussian(96)[:1].expand(96)), r.matrix() @ gaussian(96)[:1].expand(96), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_compute_in_float32(dtype: torch.dtype) -> None:
    r, x = rotation(60, 0), gaussian(4, 60).to(dtype)
    assert torch.equal(r.apply(x), r.apply(x.float()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(r.apply(x), r.apply(x.float()))


def test_input_is_left_alone() -> None:
    x = gaussian(3, 64)
    before = x.clone()
    rotation(64, 0).apply(x)
    rotation(64, 0).inverse(x)
    assert torch.equal(x, before)


def test_gradient_is_the_transpose() -> None:
    transform._factor.cache_clear()
    with torch.inference_mode():  # what is cached here must serve autograd below
        r = Rotation(28, 5)
        r.apply(gaussian(28))
    x = gaussian(3, 28).requires_grad_()
    weight = gaussian(3, 28, seed=1)
    (gradient,) = torch.autograd.grad((r.apply(x) * weight).sum(), x)
    assert torch.allclose(gradient, r.inverse(weight), rtol=0, atol=1e-5)


def test_meta_tensors_keep_their_shape() -> None:
    y = rotation(112, 0).apply(torch.empty(2, 3, 112, device="meta", dtype=torch.bfloat16))
    assert y.shape == (2, 3, 112) and y.dtype == torch.float32 and y.is_meta


def test_same_arguments_same_rotation() -> None:
    first, again = Rotation(576, 9), Rotation(576, 9)
    x = gaussian(3, 576)
    assert rotation(576, 9) is rotation(576, 9)
    assert torch.equal(first.apply(x), again.apply(x))
    assert not torch.equal(first.apply(x), rotation(576, 10).apply(x))
    assert pickle.loads(pickle.dumps(rotation(576, 9))) is rotation(576, 9)
    assert copy.deepcopy(rotation(576, 9)) is rotation(576, 9)


def test_blocks_are_told() -> None:
    assert rotation(13696, 0).block_orders == (6864, 6832)
    assert rotation(7, 0).block_orders == (4, 2, 1)
    assert repr(rotation(7, 0)) == "Rotation(order=7, seed=0, block_orders=(4, 2, 1))"


@pytest.mark.parametrize("bad", [torch.zeros(()), torch.zeros(2, 63), torch.zeros(64, dtype=torch.int64)])
def test_bad_tensors_are_refused(bad: torch.Tensor) -> None:
    with pytest.raises(NestQuantError, match="rotation of order 64 got"):
        rotation(64, 0).apply(bad)
    with pytest.raises(NestQuantError, match="rotation of order 64 got"):
        rotation(64, 0).inverse(bad)


@pytest.mark.parametrize(("order", "seed"), [(0, 0), (-4, 0), (8, -1), (8, 2**64)])
def test_bad_arguments_are_refused(order: int, seed: int) -> None:
    with pytest.raises(NestQuantError):
        rotation(order, seed)
