import itertools
import math

import pytest

from nestquant_cli.e8.code import INT8_LIMIT, INT16_LIMIT
from nestquant_cli.e8.rates import BEST
from nestquant_cli.e8.shape import CodeShape, shape_for_bits, shape_for_q


@pytest.mark.parametrize("eighths", range(16, 65))
def test_every_eighth_has_a_shape(eighths: int) -> None:
    shape = shape_for_bits(eighths / 8)
    assert shape.word_bits == eighths
    assert shape.k * shape.q**8 <= 2**eighths
    assert shape.with_multipliers(tuple(range(1, shape.k + 1))).bits == eighths / 8


def test_four_bits_are_int8_and_the_table_improves_with_every_bit() -> None:
    assert shape_for_bits(4) == CodeShape(q=13, k=5, word_bits=32, limit=INT8_LIMIT)
    errors = [BEST[bits][3] for bits in sorted(BEST)]
    assert all(b < a for a, b in itertools.pairwise(errors))


@pytest.mark.parametrize("bits", [1.9, 8.1, 4.3, 0, -4, math.nan, math.inf, -math.inf, 3.9999])
def test_refused_bits(bits: float) -> None:
    with pytest.raises(ValueError, match=r"out of range|multiple of 1/8"):
        shape_for_bits(bits)


def test_shape_for_q() -> None:
    assert shape_for_q(14, 4) == CodeShape(14, 4, 33, INT8_LIMIT)
    assert shape_for_q(13, 5, 40).word_bits == 40
    assert shape_for_q(100, 4).limit == INT16_LIMIT
    with pytest.raises(ValueError, match="does not fit a word of 32 bits"):
        shape_for_q(14, 4, 32)
    with pytest.raises(ValueError, match="at least 2"):
        shape_for_q(1, 4)
