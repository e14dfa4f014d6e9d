"""Paley's two constructions of Hadamard matrices from finite fields.

Both start from the Jacobsthal matrix Q of GF(q), Q[i, j] = χ(i - j) with the elements in integer order, and border it:

    I,  q ≡ 3 (mod 4), order q + 1:     H = I + [[0, 1ᵀ], [-1, Q]]
    II, q ≡ 1 (mod 4), order 2(q + 1):  H = C ⊗ [[1, 1], [1, -1]] + I ⊗ [[1, -1], [-1, -1]],  C = [[0, 1ᵀ], [1, Q]]

The matrices are used as they come, without normalizing their first row or column.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.rotation.galois import galois_field, prime_power

# A Paley factor is applied as a dense matrix, so its order bounds the work per coordinate. 512 includes every factor
# that widths of language models need (344 for 11008, or 464), and is less work than the product that follows.
LARGEST_PALEY_ORDER = 512


def paley_field(order: int) -> int | None:
    """The size q of the field from which the Hadamard matrix of this order is built, or None where there is none.

    q = order - 1 (construction I) is taken where both constructions apply.
    """
    if order < 4 or order % 4:
        return None
    if prime_power(order - 1):  # order - 1 ≡ 3 (mod 4)
        return order - 1
    q = order // 2 - 1
    return q if q % 4 == 1 and prime_power(q) else None


@cache
def paley_orders() -> tuple[int, ...]:
    """Every Paley order up to LARGEST_PALEY_ORDER, ascending, without powers of two (Sylvester's are cheaper)."""
    return tuple(m for m in range(12, LARGEST_PALEY_ORDER + 1, 4) if m & (m - 1) and paley_field(m))


@cache
def paley_matrix(order: int) -> NDArray[np.int8]:
    """The Paley Hadamard matrix of an order.

    Args:
        order: m = q + 1 with a prime power q ≡ 3 (mod 4), or m = 2(q + 1) with a prime power q ≡ 1 (mod 4).

    Returns:
        H, (m, m) int8 of ±1 with H Hᵀ = m I; read-only, because it is cached.

    Raises:
        NestQuantError: neither construction gives this order.
    """
    q = paley_field(order)
    if q is None:
        raise NestQuantError(
            f"no Paley construction has order {order}",
            "no Hadamard matrix was built",
            "use an order q+1 or 2(q+1) with a suitable prime power q",
        )
    field = galois_field(q)
    elements = np.arange(q)
    first = order == q + 1
    bordered = np.ones((q + 1, q + 1), dtype=np.int8)
    bordered[0, 0] = 0
    bordered[1:, 0] = -1 if first else 1
    bordered[1:, 1:] = field.character[field.sub(elements[:, None], elements[None, :])]
    identity = np.eye(q + 1, dtype=np.int8)
    if first:
        matrix = identity + bordered
    else:
        butterfly = np.array([[1, 1], [1, -1]], dtype=np.int8)
        on_diagonal = np.array([[1, -1], [-1, -1]], dtype=np.int8)
        matrix = np.kron(bordered, butterfly) + np.kron(identity, on_diagonal)
    matrix.setflags(write=False)
    return matrix
