"""Finite fields GF(p^e), as small as the Paley constructions need them.

An element is an integer 0 ≤ a < q whose base-p digits are the coefficients of a polynomial over F_p, the digit of
p^k belonging to x^k. The arithmetic is modulo the smallest monic irreducible polynomial of degree e, "smallest"
meaning the smallest integer under the same digit rule. Every function takes integers or integer arrays.
"""

from functools import cache, cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nestquant_cli.base.errors import NestQuantError

Integers = NDArray[np.int64]


def prime_power(q: int) -> tuple[int, int] | None:
    """Return (p, e) with q = p^e and p prime, or None where q is not a prime power (0 and 1 are none)."""
    if q < 2:
        return None
    p = next((d for d in range(2, int(q**0.5) + 1) if q % d == 0), q)
    e = 0
    while q % p == 0:
        q, e = q // p, e + 1
    return (p, e) if q == 1 else None


def _digits(value: int, p: int, count: int) -> list[int]:
    """The `count` lowest base-p digits of value, lowest first."""
    return [value // p**k % p for k in range(count)]


def _divides(divisor: list[int], dividend: list[int], p: int) -> bool:
    """Whether a monic polynomial divides another over F_p; coefficients lowest first."""
    rest = list(dividend)
    for top in range(len(rest) - 1, len(divisor) - 2, -1):
        lead = rest[top]
        for k, c in enumerate(reversed(divisor)):
            rest[top - k] = (rest[top - k] - lead * c) % p
    return not any(rest)


def irreducible_polynomial(p: int, e: int) -> tuple[int, ...]:
    """The smallest monic irreducible polynomial of degree e over F_p.

    Args:
        p: a prime.
        e: the degree, at least 1.

    Returns:
        The e + 1 coefficients, lowest first, the last one 1; for e = 1 the polynomial x.
    """
    # A reducible polynomial has a monic factor of at most half its degree.
    factors = [[*_digits(v, p, d), 1] for d in range(1, e // 2 + 1) for v in range(p**d)]
    for value in range(p**e):
        candidate = [*_digits(value, p, e), 1]
        if not any(_divides(factor, candidate, p) for factor in factors):
            return tuple(candidate)
    raise AssertionError("an irreducible polynomial exists for every degree")


class GaloisField:
    """GF(q) for a prime power q.

    Args:
        q: the number of elements.

    Raises:
        NestQuantError: q is not a prime power.
    """

    def __init__(self, q: int) -> None:
        split = prime_power(q)
        if split is None:
            raise NestQuantError(f"{q} is not a prime power", "there is no such finite field", "choose q = p^e")
        self.q = q
        self.p, self.e = split
        self.modulus = irreducible_polynomial(self.p, self.e)
        self._weights = self.p ** np.arange(self.e, dtype=np.int64)

    def _polynomial(self, a: ArrayLike) -> Integers:
        """Elements (...) to coefficients (..., e)."""
        return np.asarray(a, dtype=np.int64)[..., None] // self._weights % self.p

    def _element(self, coefficients: Integers) -> Integers:
        """Coefficients (..., e), any integers, to elements (...)."""
        return np.asarray((coefficients % self.p) @ self._weights)

    def add(self, a: ArrayLike, b: ArrayLike) -> Integers:
        """a + b, elementwise with broadcasting."""
        return self._element(self._polynomial(a) + self._polynomial(b))

    def sub(self, a: ArrayLike, b: ArrayLike) -> Integers:
        """a - b, elementwise with broadcasting."""
        return self._element(self._polynomial(a) - self._polynomial(b))

    def mul(self, a: ArrayLike, b: ArrayLike) -> Integers:
        """a · b, elementwise with broadcasting."""
        left, right = np.broadcast_arrays(self._polynomial(a), self._polynomial(b))
        product = np.zeros((*left.shape[:-1], 2 * self.e - 1), dtype=np.int64)
        for k in range(self.e):
            product[..., k : k + self.e] += left[..., k, None] * right
        product %= self.p
        low = np.array(self.modulus[: self.e], dtype=np.int64)
        for top in range(2 * self.e - 2, self.e - 1, -1):
            # x^top = -x^(top-e)·(the modulus without its leading term)
            product[..., top - self.e : top] -= product[..., top, None] * low
            product %= self.p
        return self._element(product[..., : self.e])

    @cached_property
    def character(self) -> NDArray[np.int8]:
        """The quadratic character of every element, (q,) int8: 0 at 0, 1 at non-zero squares, -1 elsewhere.

        Raises:
            NestQuantError: q is even, where every element is a square.
        """
        if self.p == 2:
            raise NestQuantError(
                f"GF({self.q}) has even order", "it has no quadratic character", "use an odd prime power"
            )
        elements = np.arange(self.q)
        chi = np.full(self.q, -1, dtype=np.int8)
        chi[self.mul(elements, elements)] = 1
        chi[0] = 0
        return chi


@cache
def galois_field(q: int) -> GaloisField:
    """The field with q elements, built once; raises as `GaloisField` does."""
    return GaloisField(q)
