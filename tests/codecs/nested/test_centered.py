"""Codes with centers: what is gained, what is stored, and that reading is exact."""

import pytest
import torch
from torch import Tensor

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.codecs.nested.centered import CenteredCode, centered_from, fit_centered
from nestquant_cli.codecs.nested.code import ScaledCode
from nestquant_cli.codecs.registry import fit_heads, shape_of, vector_from
from nestquant_cli.e8.shape import shape_for_bits
from nestquant_cli.modules.cache_codes import check_heads, pack_heads, round_heads, unpack_heads
from nestquant_cli.rotation.transform import rotation
from tests.families import gaussian, relative_error

HEADS, SIZE, SEED = 3, 64, 5
FOUR = shape_for_bits(4)


def states(tokens: int = 60, batch: int = 2) -> Tensor:
    """(batch, heads, tokens, size) around a center a head, with one token that is far from it and one of zeros."""
    x = gaussian(batch, HEADS, tokens, SIZE) + 2 * gaussian(HEADS, 1, SIZE, seed=1)
    x[:, :, 0] = -20 * gaussian(HEADS, SIZE, seed=1)
    x[:, :, 1] = 0
    return x


def fitted(x: Tensor, bits: float = 4) -> CenteredCode:
    by_head = rotation(SIZE, SEED).apply(x.transpose(0, 1).flatten(1, 2))
    code = fit_centered(by_head, shape_for_bits(bits), 0)
    assert isinstance(code, CenteredCode) and len(code.packed) == HEADS
    return code


def test_a_center_makes_the_error_smaller_and_outliers_do_without() -> None:
    x = states()
    code = fitted(x)
    packed = pack_heads(x, code, SEED)
    plain = fit_heads(rotation(SIZE, SEED).apply(x).reshape(1, -1, SIZE), FOUR, 0, False)
    ordinary = x[:, :, 2:]
    with_center = relative_error(unpack_heads(packed, SIZE, code, SEED, x.dtype)[:, :, 2:], ordinary)
    without = relative_error(round_heads(ordinary, plain, SEED)[1], ordinary)
    assert with_center < 0.6 * without  # a fifth of the energy is left
    marked = packed[..., -1] >= 128
    assert not marked[:, :, :2].any() and marked[:, :, 2:].float().mean() > 0.99
    assert torch.equal(unpack_heads(packed, SIZE, code, SEED, x.dtype)[:, :, 1], torch.zeros(2, HEADS, SIZE))


@pytest.mark.parametrize("bits", [3, 4, 5])
def test_the_kernel_reads_what_the_protocol_reads(bits: float) -> None:
    x = states()
    code = fitted(x, bits)
    flat = rotation(SIZE, SEED).apply(x.reshape(-1, SIZE))
    packed = pack_heads(x, code, SEED)
    other = code.pack(flat, x.shape[2]).view(packed.shape)
    assert (packed == other).all(-1).float().mean() > 0.97  # sums in another order may round otherwise
    found = unpack_heads(other, SIZE, code, SEED, torch.float32).view(-1, SIZE)
    expected = rotation(SIZE, SEED).inverse(code.unpack(other.view(len(flat), -1), SIZE, x.shape[2]).dequantized())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    again, rounded = round_heads(x, code, SEED)
    assert torch.equal(again, packed) and torch.equal(rounded, unpack_heads(packed, SIZE, code, SEED, x.dtype))


def test_a_token_is_coded_alone() -> None:
    x = states()
    code = fitted(x)
    assert torch.equal(pack_heads(x[1:, :, 7:8], code, SEED), pack_heads(x, code, SEED)[1:, :, 7:8])


def test_what_is_subtracted_is_what_is_added() -> None:
    """A vector that is its head's center leaves nothing to be rounded."""
    code = fitted(states())
    form = code.attention_form(SIZE, SEED, torch.device("cpu"))
    assert form is not None and form.centers is not None
    centers = form.centers
    exact = unpack_heads(pack_heads(centers[None, :, None], code, SEED), SIZE, code, SEED, torch.float32)
    torch.testing.assert_close(exact[0, :, 0], centers, rtol=0, atol=1e-5)


def test_the_code_of_an_input() -> None:
    x = gaussian(500, 40) + 3 * gaussian(1, 40, seed=2)
    x[0] *= -9
    code = fit_heads(x[None], FOUR, 0, True)
    assert isinstance(code, CenteredCode)
    rounded = code.round(x)
    assert rounded.centered is not None and not rounded.centered[0] and rounded.centered[1:].float().mean() > 0.99
    plain = fit_heads(x[None], FOUR, 0, False).round(x)
    without, found = (relative_error(each.dequantized()[1:], x[1:]) for each in (plain, rounded))
    assert found < 0.5 * without


def test_no_center_where_it_gains_little() -> None:
    assert isinstance(fit_heads(gaussian(2, 500, 16), FOUR, 0, True), ScaledCode)
    assert isinstance(fit_heads(torch.zeros(2, 500, 16), FOUR, 0, True), ScaledCode)
    integers = shape_of("integer", 4, None, "act")
    assert not fit_heads(gaussian(1, 500, 16) + 5, integers, 0, True).centered


def test_json_gives_the_code_back() -> None:
    code = fitted(states())
    assert vector_from(code.fitted(), FOUR) == code


@pytest.mark.parametrize("centers", [None, [], [7], ["!"], ["AAAA", "AAAAAAAA"], ["AAAA"], ["AACAfw=="], ["AACAvw=="]])
def test_centers_that_are_none_are_refused(centers: object) -> None:
    with pytest.raises(ValueError):
        centered_from(fitted(states()).scaled, centers)


def test_heads_without_a_center_of_their_own_are_refused() -> None:
    x = states()
    code = fitted(x)
    check_heads(code, x)
    for other in (x[:, :2], x[..., :56]):
        with pytest.raises(NestQuantError, match="no centers or factors for"):
            check_heads(code, other)
