"""Allocates bits to matrices, or to inputs, by equal slopes of the loss over the bits, for a given average.

A matrix m of n_m entries whose words have b bits an entry adds c_m·e(b) to the loss: e(b) is the mean squared error of
the code on a unit Gaussian, c_m the matrix's sensitivity. The sum is least, for a given number of bits, where no bit
moved from one matrix to another would lower it; so the bits go, step by step, to where one of them lowers it most.
An input is treated alike, with the entries of a token.
"""

import heapq
from collections.abc import Mapping
from dataclasses import dataclass

from ..e8.code import BLOCK
from ..e8.rates import BEST
from ..e8.shape import MAX_INT8_WORD

REACH = 12  # bits of a word, 1.5 an entry, that a matrix may lie above or below the average: set without a measurement
Errors = Mapping[int, float]  # mean squared error on a unit Gaussian by bits of a word
NESTED: Errors = {bits: best[3] for bits, best in BEST.items()}
# Inputs take nested codes whose values fit int8, or more bits as integers with a scale a token (measured with 1,536
# entries): all of them have exact int8 products.
INTEGERS: Errors = {40: 3.52e-3, 48: 9.74e-4, 56: 2.55e-4, 64: 6.52e-5}
INPUTS: Errors = {bits: error for bits, error in NESTED.items() if bits <= MAX_INT8_WORD} | dict(INTEGERS)


@dataclass(frozen=True)
class Sensitivity:
    """Size and cost of one matrix or input, or of several with the same bits.

    Attributes:
        weights: number of its entries; of an input, entries of a token.
        cost: c_m, in nats of KL divergence a token for a squared error of 1 an entry of unit variance.
        input: what matrices with the same input have in common, the full name of the first; None for a matrix alone.
    """

    weights: int
    cost: float
    input: str | None = None

    def loss(self, word_bits: int, errors: Errors = NESTED) -> float:
        """c_m·e(b), the KL divergence that rounding this matrix is expected to cost, in nats a token."""
        return self.cost * errors[word_bits]


def allocate(
    sensitivities: Mapping[str, Sensitivity], word_bits: int, tied: bool = False, errors: Errors = NESTED
) -> dict[str, int]:
    """Bits of a word for each matrix or input.

    All start at the lowest rung of `_hull`. The next rung goes to the matrix whose loss falls most a bit, until the
    average is spent. Predicted and uniform KL of the demo model at 3.5 bits: 0.062 and 0.087 (docs/mixed-rates.md).

    Args:
        sensitivities: size and cost of each matrix by its name.
        word_bits: average over all entries, which the result does not exceed.
        tied: whether matrices with the same input get the same bits.
        errors: what may be chosen, NESTED for matrices or INPUTS.

    Returns:
        bits of a word by name. Where words of the average decode to int8, all of them do.
    """
    if tied:
        words = allocate(_by_input(sensitivities), word_bits, errors=errors)
        return {name: words[item.input or name] for name, item in sensitivities.items()}
    ladder = _hull(word_bits, errors)
    places = dict.fromkeys(sensitivities, 0)
    left = sum(item.weights for item in sensitivities.values()) * (word_bits - ladder[0])
    waiting = [(_slope(item, ladder, 0, errors), name) for name, item in sensitivities.items() if len(ladder) > 1]
    heapq.heapify(waiting)
    while waiting:
        _, name = heapq.heappop(waiting)
        item, place = sensitivities[name], places[name]
        needed = item.weights * (ladder[place + 1] - ladder[place])
        if needed > left:
            continue  # a smaller matrix may still have room
        left -= needed
        places[name] = place + 1
        if place + 2 < len(ladder):
            heapq.heappush(waiting, (_slope(item, ladder, place + 1, errors), name))
    return {name: ladder[place] for name, place in places.items()}


def _by_input(sensitivities: Mapping[str, Sensitivity]) -> dict[str, Sensitivity]:
    """Size and cost of all matrices with the same input together, by the name of the input."""
    sums: dict[str, Sensitivity] = {}
    for name, item in sensitivities.items():
        before = sums.get(item.input or name, Sensitivity(0, 0.0))
        sums[item.input or name] = Sensitivity(before.weights + item.weights, before.cost + item.cost)
    return sums


def _slope(item: Sensitivity, ladder: list[int], place: int, errors: Errors) -> float:
    """Change of the loss for each bit spent, from rung `place` of the ladder to the next."""
    below, above = ladder[place], ladder[place + 1]
    return (item.loss(above, errors) - item.loss(below, errors)) / (item.weights * (above - below) / BLOCK)


def _hull(average: int, errors: Errors) -> list[int]:
    """Word sizes around the average on the lower convex hull of the error, along which every bit gains less."""
    highest = MAX_INT8_WORD if average <= MAX_INT8_WORD else max(NESTED)
    highest = max(INPUTS) if errors is INPUTS else min(average + REACH, highest)
    hull: list[int] = []
    for bits in (bits for bits in sorted(errors) if average - REACH <= bits <= highest):
        while len(hull) > 1 and _steepness(hull[-2], bits, errors) <= _steepness(hull[-2], hull[-1], errors):
            hull.pop()
        hull.append(bits)
    return hull


def _steepness(below: int, above: int, errors: Errors) -> float:
    return (errors[above] - errors[below]) / (above - below)
