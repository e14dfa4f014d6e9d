import hashlib

import numpy as np
import pytest

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.rotation.paley import LARGEST_PALEY_ORDER, paley_field, paley_matrix, paley_orders


@pytest.mark.parametrize("order", [4, 8, *paley_orders()])
def test_rows_are_exactly_orthogonal(order: int) -> None:
    h = paley_matrix(order)
    assert h.dtype == np.int8 and h.shape == (order, order)
    assert np.array_equal(np.abs(h), np.ones_like(h))
    exact = h.astype(np.float64)  # sums of at most 512 integers ±1: exact
    assert np.array_equal(exact @ exact.T, order * np.eye(order))


def test_known_orders() -> None:
    assert {12, 20, 28, 36, 44, 52, 60, 76, 108, 140, 148, 244, 344, 464} <= set(paley_orders())
    assert not {92, 116, 156, 172, 188} & set(paley_orders())  # neither construction reaches these
    assert max(paley_orders()) <= LARGEST_PALEY_ORDER


@pytest.mark.parametrize(
    ("order", "digest"),
    [
        (12, "db7478025ce74776"),
        (20, "d04b560308676ee7"),
        (28, "3ec6c53133760a03"),
        (36, "1a7aed2f42a8c71d"),
        (52, "f50db5d0f93762d3"),
        (344, "14fa999a81e32bda"),
    ],
)
def test_matrices_of_the_document(order: int, digest: str) -> None:
    assert hashlib.sha256(paley_matrix(order).tobytes()).hexdigest()[:16] == digest


def test_fields() -> None:
    assert paley_field(28) == 27  # both apply; construction I is taken
    assert paley_field(36) == 17
    assert paley_field(52) == 25
    assert paley_field(344) == 343


def test_matrix_is_cached_and_read_only() -> None:
    h = paley_matrix(12)
    assert paley_matrix(12) is h
    with pytest.raises(ValueError, match="read-only"):
        h[0, 0] = 1


@pytest.mark.parametrize("order", [-4, 0, 1, 2, 6, 92, 172])
def test_other_orders_are_refused(order: int) -> None:
    with pytest.raises(NestQuantError, match=f"no Paley construction has order {order}"):
        paley_matrix(order)
