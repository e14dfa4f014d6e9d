import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.rotation.galois import GaloisField, galois_field, irreducible_polynomial, prime_power

SIZES = [9, 25, 27, 49, 343]


@pytest.mark.parametrize("q", SIZES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_field_axioms(q: int, data: st.DataObject) -> None:
    f = galois_field(q)
    a, b, c = (data.draw(st.integers(0, q - 1)) for _ in range(3))
    assert f.add(a, b) == f.add(b, a)
    assert f.mul(a, b) == f.mul(b, a)
    assert f.add(f.add(a, b), c) == f.add(a, f.add(b, c))
    assert f.mul(f.mul(a, b), c) == f.mul(a, f.mul(b, c))
    assert f.mul(a, f.add(b, c)) == f.add(f.mul(a, b), f.mul(a, c))
    assert f.sub(f.add(a, b), b) == a
    assert f.add(a, 0) == a
    assert f.mul(a, 1) == a
    assert f.character[int(f.mul(a, b))] == f.character[a] * f.character[b]


@pytest.mark.parametrize("q", SIZES)
def test_every_nonzero_element_is_invertible(q: int) -> None:
    f = galois_field(q)
    nonzero = np.arange(1, q)
    table = f.mul(nonzero[:, None], nonzero[None, :])  # (q-1, q-1)
    assert np.array_equal(np.sort(table, axis=1), np.broadcast_to(nonzero, table.shape))


@pytest.mark.parametrize("q", [3, 5, 7, 11, *SIZES])
def test_character_is_balanced(q: int) -> None:
    chi = galois_field(q).character
    assert chi[0] == 0 and chi[1] == 1
    assert int((chi == 1).sum()) == int((chi == -1).sum()) == (q - 1) // 2


def test_character_of_a_prime_field_is_eulers_criterion() -> None:
    chi = galois_field(43).character
    assert [int(c) % 43 for c in chi] == [pow(a, 21, 43) for a in range(43)]


def test_irreducible_polynomials_of_the_document() -> None:
    assert irreducible_polynomial(3, 2) == (1, 0, 1)  # x² + 1
    assert irreducible_polynomial(5, 2) == (2, 0, 1)  # x² + 2
    assert irreducible_polynomial(3, 3) == (1, 2, 0, 1)  # x³ + 2x + 1
    assert irreducible_polynomial(7, 2) == (1, 0, 1)
    assert irreducible_polynomial(7, 3) == (2, 0, 0, 1)  # x³ + 2
    assert irreducible_polynomial(2, 3) == (1, 1, 0, 1)


def test_prime_power() -> None:
    assert [q for q in range(30) if prime_power(q)] == [
        *(2, 3, 4, 5, 7, 8, 9, 11, 13, 16, 17, 19, 23, 25, 27, 29),
    ]
    assert prime_power(343) == (7, 3)


def test_bad_sizes() -> None:
    with pytest.raises(NestQuantError, match="not a prime power"):
        GaloisField(15)
    with pytest.raises(NestQuantError, match="even order"):
        _ = GaloisField(8).character
