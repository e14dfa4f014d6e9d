"""Lattice codes: levels, packing, decoding by the definition, and refusals of what no encoder writes."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from nestquant_cli.codecs.lattice.code import CURVES, LatticeCode, levels
from nestquant_cli.codecs.registry import shape_from, shape_of
from tests.families import gaussian

MIXED = LatticeCode(2.5, 8, 32, group_bits=(3, 2, 2), curves=(0, 1, 7))


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("curve", range(len(CURVES)))
def test_levels_increase_and_are_symmetric(bits: int, curve: int) -> None:
    table, error = levels(bits, curve)
    assert len(table) == 1 << bits and (table.diff() > 0).all()
    torch.testing.assert_close(table, -table.flip(0))
    assert 0 < error < 0.4


def test_levels_have_the_error_of_the_best_uniform_grid() -> None:
    """Max, "Quantizing for minimum distortion" (1960), table II: 0.1188, 0.03744 and 0.01154 at 4, 8 and 16 levels."""
    for bits, error in ((2, 0.1188), (3, 0.03744), (4, 0.01154)):
        assert levels(bits, 0)[1] == pytest.approx(error, rel=0.02)
        assert min(levels(bits, curve)[1] for curve in range(len(CURVES))) < error


def test_pack_and_unpack() -> None:
    entries = 80  # groups of 32, 32 and 16
    digits = torch.cat([torch.randint(0, 1 << bits, (5, width)) for bits, width in ((3, 32), (2, 32), (2, 16))], dim=1)
    words = MIXED.pack(digits.to(torch.uint8))
    assert words.shape == (5, MIXED.row_bytes(entries)) and MIXED.used_bytes(entries) == 24
    assert not words[:, 24:].any()
    assert torch.equal(MIXED.unpack(words, entries), digits.to(torch.uint8))


@pytest.mark.parametrize("dimension", [8, 16, 32])
@pytest.mark.parametrize("shared", [False, True])
def test_the_compiled_decoder_agrees_with_the_definition(dimension: int, shared: bool) -> None:
    bits = (1, 2, 3, 4, 5, 6, 7, 8)
    code = LatticeCode(5, dimension, 64, shared, group_bits=bits, curves=tuple(range(8)))
    entries, lattices = 64 * 8 - 32, gaussian(1 if shared else 8, dimension, dimension).half()
    digits = torch.cat([torch.randint(0, 1 << b, (9, 64)) for b in bits], dim=1)[:, :entries].to(torch.uint8)
    values = code.decode(code.pack(digits), lattices.view(torch.int16), entries)
    torch.testing.assert_close(values, code.multiply(digits, lattices.float()), rtol=1e-5, atol=1e-4)


def test_an_entry_is_the_lattice_times_levels() -> None:
    digits = torch.randint(0, 4, (3, 80), dtype=torch.uint8)
    lattices = gaussian(3, 8, 8).half()
    values = MIXED.decode(MIXED.pack(digits), lattices.view(torch.int16), 80)
    for row, block in ((0, 0), (2, 4), (1, 9)):
        group = block * 8 // 32
        table = levels((3, 2, 2)[group], (0, 1, 7)[group])[0]
        points = table[digits[row, block * 8 : block * 8 + 8].int()]
        torch.testing.assert_close(values[row, block * 8 : block * 8 + 8], lattices[group].float() @ points)


@pytest.mark.parametrize(("entries", "dimension"), [(64, 32), (48, 16), (40, 8)])
def test_the_dimension_divides_the_row(entries: int, dimension: int) -> None:
    shape = LatticeCode(3, 32, 32, shared=True)
    assert shape.dimension_of(entries) == dimension
    assert shape.tensors(5, entries)["lattice"] == ((1, dimension, dimension), torch.int16)


def test_shapes_come_back() -> None:
    shape = shape_of("glvq", 2.5, {"dimension": 16, "shared": True}, "weight")
    assert shape_from(shape.to_dict()) == shape
    assert MIXED.with_groups(MIXED.fitted(), 80) == MIXED


@pytest.mark.parametrize(
    "groups",
    [
        None,
        [],
        {},
        {"bits": "32", "curves": "000"},
        {"bits": "333", "curves": "000"},
        {"bits": "022", "curves": "000"},
        {"bits": "922", "curves": "000"},
        {"bits": "²22", "curves": "000"},
        {"bits": "222", "curves": "008"},
        {"bits": [2, 2, 2], "curves": "000"},
        {"bits": "222"},
    ],
)
def test_groups_that_no_encoder_writes_are_refused(groups: Any) -> None:
    with pytest.raises(ValueError, match="groups"):
        MIXED.with_groups(groups, 80)


@pytest.mark.parametrize(
    "field",
    [
        {"bits": 1.5},
        {"bits": 2.05},
        {"bits": "2"},
        {"dimension": 12},
        {"group": 40},
        {"group": None},
        {"shared": 1},
        {"companding": "yes"},
    ],
)
def test_fields_out_of_range_are_refused(field: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        replace(LatticeCode(2), **field)
    with pytest.raises(ValueError):
        shape_from(LatticeCode(2).to_dict() | field)


@pytest.mark.parametrize(("settings", "part"), [({"q": 3}, "weight"), ([], "weight"), (None, "act"), (None, "kv")])
def test_what_it_does_not_code_is_refused(settings: Any, part: str) -> None:
    with pytest.raises(ValueError):
        shape_of("glvq", 2, settings, part)
