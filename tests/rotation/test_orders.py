import itertools
import math
import time

import pytest

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.rotation.orders import LARGEST_GROUP, atoms, block_orders, dense_groups, is_reachable
from nestquant_cli.rotation.paley import paley_orders


def products(limit: int) -> set[int]:
    """Every product of twos and Paley orders up to limit, by brute force."""
    found = {1}
    while True:
        larger = found | {a * m for a in found for m in (2, *paley_orders()) if a * m <= limit}
        if larger == found:
            return found
        found = larger


def test_reachable_orders_are_the_products() -> None:
    expected = products(6000)
    assert {n for n in range(-4, 6001) if is_reachable(n)} == expected


@pytest.mark.parametrize(
    ("order", "paley"),
    [
        (1, ()),
        (64, ()),
        (24, (12,)),
        (576, (12, 12)),
        (1536, (12,)),
        (4864, (76,)),
        (5120, (20,)),
        (11008, (344,)),
        (13824, (12, 12, 12)),
        (14336, (28,)),
        (29568, (12, 28, 44)),
    ],
)
def test_atoms(order: int, paley: tuple[int, ...]) -> None:
    parts = atoms(order)
    assert math.prod(parts) == order
    assert parts == paley + (2,) * (len(parts) - len(paley))


def test_atoms_have_the_least_sum() -> None:
    def least(n: int, choices: tuple[int, ...]) -> int | None:
        sums = [0] if n == 1 else []
        for i, m in enumerate(choices):
            rest = least(n // m, choices[i:]) if n % m == 0 else None
            sums += [] if rest is None else [rest + m]
        return min(sums, default=None)

    for n in filter(is_reachable, range(1, 3000)):
        assert sum(atoms(n)) == least(n, (2, *paley_orders()))


@pytest.mark.parametrize("overhead", [0, 24, 96])
def test_groups_only_bracket_the_atoms(overhead: int) -> None:
    for n in filter(is_reachable, range(1, 5000)):
        groups = dense_groups(n, overhead)
        assert tuple(itertools.chain.from_iterable(groups)) == atoms(n)
        assert all(len(g) == 1 or math.prod(g) <= LARGEST_GROUP for g in groups)


def test_13696_needs_two_blocks() -> None:
    assert not is_reachable(13696)
    assert block_orders(13696) == (6864, 6832)
    assert atoms(6864) == (52, 132) and atoms(6832) == (28, 244)
    assert block_orders(15104) == (7616, 7488)
    assert block_orders(194119) == (97520, 96096, 500, 2, 1)


def test_blocks_of_small_widths_are_the_best_of_all_splits() -> None:
    orders = sorted(products(120))

    def splits(total: int, count: int, least: int) -> list[tuple[int, ...]]:
        if count == 0:
            return [()] if total == 0 else []
        usable = [m for m in orders if least <= m <= total]
        return [(m, *rest) for m in usable for rest in splits(total - m, count - 1, m)]

    for width in range(1, 121):
        fewest = next(s for k in range(1, 9) if (s := splits(width, k, 1)))
        assert block_orders(width) == max(fewest)[::-1]  # ascending tuples: the largest smallest block first


@pytest.mark.parametrize("width", [1, 2, 3, 7, 4097, 13697, 99991, 151936, 199996, 199999])
def test_any_width_is_split_quickly(width: int) -> None:
    started = time.process_time()
    blocks = block_orders.__wrapped__(width)
    assert time.process_time() - started < 1.0  # milliseconds; the margin is for a loaded machine
    assert sum(blocks) == width and all(map(is_reachable, blocks))
    assert list(blocks) == sorted(blocks, reverse=True)


def test_bad_orders() -> None:
    with pytest.raises(NestQuantError, match="not positive"):
        block_orders(0)
    with pytest.raises(NestQuantError, match="Paley orders is 13696"):
        atoms(13696)
    with pytest.raises(NestQuantError):
        dense_groups(92, 24)
