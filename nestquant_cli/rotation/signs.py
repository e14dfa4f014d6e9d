"""The random signs of a rotation: a pure integer rule, the same in every language and on every device."""

import numpy as np
from numpy.typing import NDArray

from nestquant_cli.base.errors import NestQuantError

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15
_STEPS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))


def splitmix64(seed: int, count: int) -> NDArray[np.uint64]:
    """The first `count` outputs of the SplitMix64 generator, (count,) uint64.

    Output i (from 0) is the finalizer of seed + (i + 1)·0x9E3779B97F4A7C15 mod 2^64.
    """
    z = np.uint64(seed & _MASK) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GAMMA)
    for shift, factor in _STEPS:
        z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
    return z


def signs(order: int, seed: int) -> NDArray[np.int8]:
    """The signs of the rotation (order, seed).

    With next(s) the first output of SplitMix64 seeded by s, the stream is SplitMix64 seeded by
    next(next(seed) XOR order). Bit j of the stream is bit j mod 64, least significant first, of output j div 64;
    sign j is +1 for a 0 and -1 for a 1.

    Args:
        order: number of signs, at least 0.
        seed: 0 ≤ seed < 2^64.

    Returns:
        (order,) int8 of ±1.

    Raises:
        NestQuantError: the seed is out of range.
    """
    if not 0 <= seed <= _MASK:
        raise NestQuantError(f"rotation seed {seed} is out of range", "no rotation was made", "use 0 <= seed < 2^64")
    state = int(splitmix64(int(splitmix64(seed, 1)[0]) ^ order, 1)[0])
    words = splitmix64(state, -(-order // 64))
    bits = (words[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    return (1 - 2 * bits.reshape(-1)[:order].astype(np.int8)).astype(np.int8)
