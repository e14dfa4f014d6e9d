"""A code with factors of channels: packing is that of multiplied vectors, and reading divides them again."""

import pytest
import torch
from torch import Tensor

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.codecs.factored import FactoredCode, factored_from
from nestquant_cli.codecs.integer.code import IntegerCode
from nestquant_cli.codecs.nested.centered import CenteredCode, fit_centered
from nestquant_cli.codecs.nested.code import ScaledCode
from nestquant_cli.codecs.nested.fit import fit_scales
from nestquant_cli.codecs.registry import vector_from
from nestquant_cli.codecs.vectors import VectorCode
from nestquant_cli.e8.shape import shape_for_bits
from nestquant_cli.kernels.reference import heads as reference
from nestquant_cli.modules.cache_codes import check_heads, pack_heads, round_heads, unpack_heads
from nestquant_cli.rotation.seeds import ONE, bytes_of
from nestquant_cli.rotation.transform import rotation
from tests.families import gaussian

HEADS, SEED = 3, 5
FOUR = shape_for_bits(4)
SIZES = (64, 80, 96, 24)  # powers of two, and others


def factors(size: int, heads: int = HEADS) -> tuple[bytes, ...]:
    return tuple(bytes_of(torch.exp2(row).double().numpy()) for row in gaussian(heads, size, seed=9))


def numbers(size: int) -> Tensor:
    """The factors (heads, 1, size)."""
    steps = torch.tensor([list(each) for each in factors(size)]).double()
    return torch.exp2((steps - ONE) / 10).float()[:, None]


def inner(kind: str, size: int) -> VectorCode:
    if kind == "integer":
        return IntegerCode(4, clip=1.0)
    if kind == "nested":
        return fit_scales(gaussian(2048, 8), FOUR)
    x = gaussian(HEADS, 200, size) + 2 * gaussian(HEADS, 1, size, seed=1)
    code = fit_centered(rotation(size, SEED).apply(x * numbers(size)), FOUR, 0)
    assert isinstance(code, CenteredCode)
    return code


def states(size: int) -> Tensor:
    return gaussian(2, HEADS, 30, size, seed=3) + 2 * gaussian(HEADS, 1, size, seed=1)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["nested", "centered", "integer"])
@pytest.mark.parametrize("seed", [SEED, None])
def test_it_is_the_code_of_multiplied_vectors(size: int, kind: str, seed: int | None) -> None:
    code = inner(kind, size)
    factored, x, f = FactoredCode(code, factors(size)), states(size), numbers(size)
    packed = pack_heads(x, factored, seed)
    assert torch.equal(packed, pack_heads(x * f, code, seed))
    read = unpack_heads(packed, size, factored, seed, torch.float32)
    torch.testing.assert_close(read * f, unpack_heads(packed, size, code, seed, torch.float32), rtol=1e-6, atol=0)
    again, rounded = round_heads(x, factored, seed)
    assert torch.equal(again, packed) and torch.equal(rounded, read)
    assert not torch.equal(packed, pack_heads(x, code, seed))


def test_a_token_is_coded_alone() -> None:
    code, x = FactoredCode(inner("centered", 64), factors(64)), states(64)
    assert torch.equal(pack_heads(x[1:, :, 7:8], code, SEED), pack_heads(x, code, SEED)[1:, :, 7:8])


@pytest.mark.parametrize("size", SIZES)
def test_the_reference_reads_what_the_kernel_reads(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    code, x = FactoredCode(inner("centered", size), factors(size)), states(size)
    packed = pack_heads(x, code, SEED)
    read = unpack_heads(packed, size, code, SEED, torch.float32)
    monkeypatch.setattr("nestquant_cli.codecs.nested.code.for_device", lambda _: reference)
    assert torch.equal(unpack_heads(packed, size, code, SEED, torch.float32), read)


def test_queries_are_divided_where_keys_are_not_read() -> None:
    """q·(k/f) = (q/f)·k, with the centers in the basis of the multiplied keys."""
    code = FactoredCode(inner("centered", 64), factors(64))
    form = code.attention_form(64, SEED, torch.device("cpu"))
    assert form is not None and form.centers is not None
    query, packed = gaussian(2, HEADS, 4, 64, seed=7), pack_heads(states(64), code, SEED)
    multiplied = unpack_heads(packed, 64, code.code, SEED, torch.float32)
    expected = query @ unpack_heads(packed, 64, code, SEED, torch.float32).mT
    torch.testing.assert_close(form.queries(query) @ multiplied.mT, expected, rtol=1e-4, atol=1e-4)
    plain = code.code.attention_form(64, SEED, torch.device("cpu"))
    assert plain is not None and plain.queries(query) is query
    assert FactoredCode(inner("integer", 64), factors(64)).attention_form(64, SEED, torch.device("cpu")) is None


def test_some_heads() -> None:
    code, x = FactoredCode(inner("centered", 64), factors(64)), states(64)
    assert torch.equal(pack_heads(x[:, 1:], code.of_heads(1, 3), SEED), pack_heads(x, code, SEED)[:, 1:])
    assert code.of_heads(1, 3).fits(2, 64) and not code.of_heads(1, 3).fits(3, 64)


def test_json_gives_the_code_back() -> None:
    code = FactoredCode(inner("centered", 64), factors(64))
    fitted = code.fitted()
    assert all(isinstance(text, str) and len(text) == 64 for text in fitted["factors"])
    assert factored_from(vector_from(fitted, FOUR), fitted["factors"]) == code
    plain = inner("nested", 64)
    assert factored_from(plain, None) is plain


@pytest.mark.parametrize("texts", [[], "PP", [7], [""], ["P", "PP"], ["P P"], ["\\"], {"a": "P"}])
def test_factors_that_are_none_are_refused(texts: object) -> None:
    with pytest.raises(ValueError):
        factored_from(inner("nested", 64), texts)


def test_states_of_other_heads_are_refused() -> None:
    code = FactoredCode(inner("nested", 64), factors(64))
    check_heads(code, states(64))
    for other in (states(64)[:, :2], states(80)):
        with pytest.raises(NestQuantError, match="factors for"):
            check_heads(code, other)
    assert isinstance(code.code, ScaledCode)
