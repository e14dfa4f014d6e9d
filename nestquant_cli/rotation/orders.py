"""Hadamard orders that can be reached, the factors of each, and the blocks of a width that is none of them.

A reachable order is a product of *atoms*: Paley orders and twos. The atoms of an order, and the blocks of a width, are
part of what defines a rotation; `dense_groups` only arranges the same product for speed.
"""

from functools import cache

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.rotation.paley import LARGEST_PALEY_ORDER, paley_orders

LARGEST_GROUP = (
    128  # largest order of a dense factor that several atoms are multiplied out into; only speed depends on it
)


@cache
def is_reachable(order: int) -> bool:
    """Whether powers of two and Paley orders multiply to this order."""
    if order < 1 or (order > 2 and order % 4):
        return False
    if order > LARGEST_PALEY_ORDER and order % 8:  # a product of two atoms or more
        return False
    if order & (order - 1) == 0 or is_reachable(order // 2):
        return True
    return any(order % m == 0 and is_reachable(order // m) for m in paley_orders())


@cache
def _cheapest(order: int, largest: int) -> tuple[int, tuple[int, ...]] | None:
    """The least (sum of atoms, Paley atoms ascending) among products with Paley atoms ≤ largest, or None."""
    best: tuple[int, tuple[int, ...]] | None = None
    if order & (order - 1) == 0:
        best = 2 * (order.bit_length() - 1), ()
    for m in paley_orders():
        if m > min(largest, order):
            break
        rest = _cheapest(order // m, m) if order % m == 0 else None
        if rest is not None:
            candidate = (rest[0] + m, (*rest[1], m))
            best = candidate if best is None else min(best, candidate)
    return best


def atoms(order: int) -> tuple[int, ...]:
    """The factors of a reachable Hadamard order, in the order of their Kronecker product.

    The transform works m operations per coordinate for an atom m, so the product with the least sum of atoms is
    taken (each two counting 2); between equal sums, the lexicographically smallest Paley part.

    Returns:
        The Paley orders ascending, then the twos; () for order 1.

    Raises:
        NestQuantError: the order is not reachable.
    """
    best = _cheapest(order, order) if is_reachable(order) else None
    if best is None:
        raise NestQuantError(
            f"no product of powers of two and Paley orders is {order}",
            "there is no single Hadamard matrix for it",
            "use the blocks of block_orders",
        )
    paley = best[1]
    rest = order
    for m in paley:
        rest //= m
    return paley + (2,) * (rest.bit_length() - 1)


def _split(total: int, count: int, least: int) -> tuple[int, ...] | None:
    """`count` reachable multiples of 4, ascending, each ≥ least, that sum to total: the smallest as large as can be."""
    if count == 1:
        return (total,) if total >= least and is_reachable(total) else None
    start = total // count // 4 * 4
    if total % 8:  # one block is no multiple of 8: a single Paley matrix, and so is the smallest no larger
        start = min(start, LARGEST_PALEY_ORDER)
    for first in range(start, least - 1, -4):
        if is_reachable(first):
            rest = _split(total - first, count - 1, first)
            if rest is not None:
                return (first, *rest)
    return None


@cache
def block_orders(width: int) -> tuple[int, ...]:
    """The Hadamard blocks of a width, largest first.

    The fewest reachable orders that sum to the width; among those the largest smallest block, then the largest second
    smallest, and so on. Orders above 2 are multiples of 4, and 1 + 1 and 2 + 2 are reachable, so exactly the remainder
    of the width modulo 4 is left to blocks of 2 and 1.

    Raises:
        NestQuantError: width < 1.
    """
    if width < 1:
        raise NestQuantError(f"width {width} is not positive", "there is nothing to rotate", "use a width of 1 or more")
    tail = tuple(b for b in (2, 1) if width % 4 & b)
    total = width - sum(tail)
    if total == 0:
        return tail
    count, blocks = 1, _split(total, 1, 4)
    while blocks is None:
        count += 1
        blocks = _split(total, count, 4)
    return blocks[::-1] + tail


def _group_cost(size: int, trailing: int, overhead: int) -> float:
    """Predicted time of one dense factor in multiply-adds a coordinate: (size + overhead)·(1 + 16/row).

    Short rows do not fill the vector units: a row is `trailing` long, or `size` on the last axis.
    """
    row = trailing if trailing > 1 else size
    return (size + overhead) * (1 + 16 / row)


@cache
def dense_groups(order: int, overhead: int) -> tuple[tuple[int, ...], ...]:
    """Runs of consecutive atoms to be multiplied out into dense factors so that the transform is fast.

    Args:
        order: a reachable order.
        overhead: the cost of passing once over the data, in multiply-adds per coordinate.

    Returns:
        Groups of atoms whose concatenation is `atoms(order)`; () for order 1.

    Raises:
        NestQuantError: the order is not reachable.
    """
    parts = atoms(order)
    # best[i] is the cheapest grouping of parts[i:], which has trailing[i] coordinates.
    best: list[tuple[float, tuple[tuple[int, ...], ...]]] = [(0.0, ())] * (len(parts) + 1)
    trailing = [1] * (len(parts) + 1)
    for i in reversed(range(len(parts))):
        trailing[i] = parts[i] * trailing[i + 1]
        options = []
        for j in range(i + 1, len(parts) + 1):
            size = trailing[i] // trailing[j]
            if j > i + 1 and size > LARGEST_GROUP:
                break
            options.append((_group_cost(size, trailing[j], overhead) + best[j][0], (parts[i:j], *best[j][1])))
        best[i] = min(options)
    return best[0][1]
