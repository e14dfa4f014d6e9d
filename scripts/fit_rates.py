"""Prints the table in nestquant_cli/e8/rates.py: for each word size, the (q, k) of least error on a unit Gaussian.

    python scripts/fit_rates.py [--blocks 16384] [--largest-k 16]

Each candidate's multipliers are fitted to one Gaussian sample and scored on another.
"""

import argparse

import torch

from nestquant_cli.codecs.nested.fit import fit_scales, gaussian_error
from nestquant_cli.e8.code import INT8_LIMIT, INT16_LIMIT
from nestquant_cli.e8.shape import MAX_INT8_WORD, CodeShape

WORDS = range(16, 65)


def main() -> None:
    """Fits every candidate and prints the table as Python source."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=16384)
    parser.add_argument("--largest-k", type=int, default=16)
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    fit_on, score_on = (torch.randn(options.blocks, 8, generator=generator) for _ in range(2))
    print("BEST: dict[int, tuple[int, int, int, float]] = {")
    for word_bits in WORDS:
        limit = INT8_LIMIT if word_bits <= MAX_INT8_WORD else INT16_LIMIT
        rows = []
        for q, k in candidates(word_bits, options.largest_k):
            scaled = fit_scales(fit_on, CodeShape(q, k, word_bits, limit))
            rows.append((gaussian_error(scaled, score_on), q, k))
        error, q, k = min(rows)
        print(f"    {word_bits}: ({q}, {k}, {limit}, {error:.3g}),", flush=True)
    print("}")


def candidates(word_bits: int, largest_k: int) -> list[tuple[int, int]]:
    """The pairs (q, k) to try: for each q the largest k ≤ largest_k with k·q⁸ ≤ 2^word_bits."""
    pairs = {}
    for k in range(1, largest_k + 1):
        q = int((2**word_bits // k) ** 0.125) + 1
        while k * q**8 > 2**word_bits:
            q -= 1
        if q >= 2:
            pairs[q] = k
    return sorted(pairs.items())


if __name__ == "__main__":
    main()
