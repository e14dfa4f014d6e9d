"""Head vectors on the CPU: alike one by one and all at once, and on every device."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nestquant_cli.codecs.nested.code import ScaledCode
from nestquant_cli.codecs.nested.fit import fit_scales
from nestquant_cli.e8.shape import shape_for_bits
from nestquant_cli.kernels.cpu import cache as cpu_cache
from nestquant_cli.kernels.reference import heads as reference
from nestquant_cli.rotation.transform import rotation
from tests.families import gaussian, relative_error

SEED = 3
SIZES = (8, 16, 64, 80, 96, 128, 256, 104)  # 80 and 96 have Paley factors, 104 is two blocks


pytestmark = pytest.mark.usefixtures("two_threads")


def fitted(bits: float) -> ScaledCode:
    return fit_scales(gaussian(2048, 8), shape_for_bits(bits))


def vectors(rows: int, size: int, seed: int = 0) -> Tensor:
    """Vectors of different sizes, some with an entry that no multiplier holds and one of zeros."""
    x = gaussian(rows, size, seed=seed) * torch.linspace(0.1, 10, rows)[:, None]
    x[rows // 2] = 0
    x[1::7] = rotation(size, SEED).inverse(F.pad(torch.full((len(x[1::7]), 1), 9.0), (0, size - 1)))
    return x


def encode(x: Tensor, scaled: ScaledCode) -> Tensor:
    return cpu_cache.encode(x, scaled.code, scaled.unit, SEED, False)[0]


def decode(packed: Tensor, size: int, scaled: ScaledCode) -> Tensor:
    return cpu_cache.decode(packed, size, scaled.code, SEED)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("bits", [2, 3.5, 4, 5])
def test_what_is_stored_does_not_depend_on_the_company(size: int, bits: float) -> None:
    scaled = fitted(bits)
    x = vectors(150, size)
    packed, rounded = cpu_cache.encode(x, scaled.code, scaled.unit, SEED, True)
    assert rounded is not None and torch.equal(rounded, decode(packed, size, scaled))
    for start, stop in ((0, 1), (1, 4), (60, 130), (149, 150)):
        assert torch.equal(encode(x[start:stop], scaled), packed[start:stop])
        assert torch.equal(decode(packed[start:stop], size, scaled), rounded[start:stop])
    assert torch.equal(rounded[75], torch.zeros(size))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("bits", [3.5, 4, 5])
def test_the_same_as_on_any_device(size: int, bits: float) -> None:
    scaled = fitted(bits)
    x = vectors(300, size)
    packed, other = encode(x, scaled), scaled.pack(rotation(size, SEED).apply(x))
    assert (packed == other).all(1).float().mean() > 0.97  # sums in another order may round otherwise
    assert torch.equal(decode(other, size, scaled), reference.decode_heads(other, size, scaled.code, SEED))
    typical = torch.arange(300) % 7 != 1
    found, expected = (decode(p, size, scaled)[typical] for p in (packed, other))
    assert abs(relative_error(found, x[typical]) - relative_error(expected, x[typical])) < 1e-3


def attend(query: Tensor, keys: Tensor, values: Tensor, scaled: ScaledCode, mask: Tensor | None) -> Tensor:
    sides = (keys, scaled.code), (values, scaled.code, values_size(values, scaled))
    return cpu_cache.attend(query, *sides, SEED, mask, 0.3)


def values_size(packed: Tensor, scaled: ScaledCode) -> int:
    return (packed.shape[-1] - 2) * 8 // scaled.code.word_bits * 8


@pytest.mark.parametrize("group", [1, 3, 8])
@pytest.mark.parametrize(("size", "value_size"), [(16, 16), (64, 64), (80, 80), (128, 128), (192, 128)])
@pytest.mark.parametrize("tokens", [1, 64, 517])
def test_attention_equals_that_to_decoded_states(group: int, size: int, value_size: int, tokens: int) -> None:
    scaled = fitted(4)
    states = [gaussian(2, 2, tokens + 9, n, seed=n + i) for i, n in enumerate((size, value_size))]
    packed = [encode(x.view(-1, x.shape[-1]), scaled).view(*x.shape[:-1], -1)[:, :, 4 : tokens + 4] for x in states]
    decoded = [decode(p.reshape(-1, p.shape[-1]), x.shape[-1], scaled) for p, x in zip(packed, states, strict=True)]
    keys, values = (d.view(2, 2, tokens, -1) for d in decoded)
    query = gaussian(2, 2, group, size, seed=5)
    hidden = torch.where(gaussian(2, 1, 1, tokens, seed=6) > 1, -torch.inf, 0.0)
    hidden[..., -1] = 0
    for mask in (None, hidden, gaussian(2, 2, group, tokens, seed=7), gaussian(1, 1, 1, tokens, seed=8)):
        expected = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=0.3)
        found = attend(query, packed[0], packed[1], scaled, mask)
        assert found.shape == expected.shape and relative_error(found, expected) < 2e-6


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("tokens", [1, 64, 517])
def test_attention_to_centered_keys(tokens: int, bits: float) -> None:
    centers, run = 2 * gaussian(2, 64, seed=3), tokens
    x = gaussian(2, 2, tokens, 64) + centers[:, None]
    x[:, :, ::5] *= -2  # these are not centered
    scaled = fitted(bits)
    fixed = scaled.code, scaled.unit, SEED
    packed, rounded = cpu_cache.encode(x.view(-1, 64), *fixed, True, centers, run)
    assert rounded is not None
    assert torch.equal(rounded, cpu_cache.decode(packed, 64, scaled.code, SEED, centers, run))
    marked = (packed[:, -1] >= 128).view(2, 2, tokens)
    assert not marked[..., ::5].any() and marked[..., 1::5].all()
    values = encode(gaussian(4 * tokens, 64, seed=1), scaled)
    query = gaussian(2, 2, 3, 64, seed=5)
    sides = [(p.view(2, 2, tokens, -1), scaled.code) for p in (packed, values)]
    found = cpu_cache.attend(query, sides[0], (*sides[1], 64), SEED, None, 0.3, centers)
    decoded = rounded.view(2, 2, tokens, 64), decode(values, 64, scaled).view(2, 2, tokens, 64)
    assert relative_error(found, F.scaled_dot_product_attention(query, *decoded, scale=0.3)) < 2e-6


def test_threads_change_nothing_and_what_sees_nothing_is_zero() -> None:
    scaled = fitted(4)
    packed = encode(gaussian(3 * 4000, 64), scaled).view(1, 3, 4000, -1)
    query = 3 * gaussian(1, 3, 2, 64, seed=1)
    mask = torch.zeros(1, 3, 2, 4000)
    mask[:, 1, 0] = -torch.inf
    mask[:, 2, :, :2000] = -torch.inf
    shared = attend(query, packed, packed, scaled, mask)
    torch.set_num_threads(1)
    assert torch.equal(attend(query, packed, packed, scaled, mask), shared)
    assert torch.equal(shared[0, 1, 0], torch.zeros(64)) and shared.isfinite().all()
