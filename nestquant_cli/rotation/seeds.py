"""What a rotation is made from: the seed of its signs, and factors of the channels beside them where it has any.

With a factor f for each channel, R = H·diag(signs·f) is no rotation: a token x becomes R x, and a row w of a weight
becomes R⁻ᵀ w = H·diag(signs/f)·w, so that products stay what they were. Factors are powers of 2^(1/10), and the
reciprocals of some are factors, too. `calibration.channel_scales` says what they are for.
"""

from functools import lru_cache
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

# Steps of a factor in an octave: rounding to it loses 0.007 dB, a factor being at most 3.5 % off.
STEPS = 10
ONE = 45  # the byte of the factor 1; 0 to 90 are 2^−4.5 to 2^4.5
# In a text each factor is one of 91 characters: those of ASCII that JSON writes as one byte, without space and "!".
_CHARACTERS = bytes(code for code in range(ord("#"), ord("~") + 1) if code != ord("\\"))


class ScaledSeed(NamedTuple):
    """The seed of a rotation's signs, with a factor for each channel.

    Attributes:
        seed: 0 ≤ seed < 2^64.
        factors: a byte b for each channel, padding included, for the factor 2^((b − 45)/10); b is at most 90.
    """

    seed: int
    factors: bytes

    def values(self) -> NDArray[np.float64]:
        """The factors, (n,)."""
        return np.exp2((np.frombuffer(self.factors, np.uint8).astype(np.float64) - ONE) / STEPS)


Seed = int | ScaledSeed


def bytes_of(factors: NDArray[np.float64]) -> bytes:
    """The bytes of the nearest factors to some positive ones (n,), those beyond the range being cut off."""
    steps = np.clip(np.rint(STEPS * np.log2(factors)), -ONE, ONE)
    return bytes((steps + ONE).astype(np.uint8))


def text_of(factors: bytes) -> str:
    """Factors as a text with a character for each channel."""
    return bytes(_CHARACTERS[byte] for byte in factors).decode()


def factors_of(text: str) -> bytes:
    """The inverse of `text_of`; raises ValueError for a character that stands for no factor."""
    places = {chr(code): place for place, code in enumerate(_CHARACTERS)}
    if set(text) - set(places):
        raise ValueError("a character stands for no factor")
    return bytes(places[character] for character in text)


@lru_cache(maxsize=4096)
def dual(seed: Seed | None) -> Seed | None:
    """The seed with which weights are rotated, whose inputs are rotated with `seed`: with the reciprocal factors."""
    if not isinstance(seed, ScaledSeed):
        return seed
    return ScaledSeed(seed.seed, bytes(2 * ONE - byte for byte in seed.factors))


def plain(seed: Seed | None) -> int | None:
    """The seed of the signs alone."""
    return seed.seed if isinstance(seed, ScaledSeed) else seed


def scaled(seed: int | None, factors: bytes | None) -> Seed | None:
    """A seed of signs with these factors; None where nothing is rotated, which needs no factors.

    Args:
        seed: seed of the signs.
        factors: as `ScaledSeed` has them; None for none.
    """
    return seed if seed is None or factors is None else ScaledSeed(seed, factors)


@overload
def seeds_of_parts(seed: Seed, parts: int) -> tuple[Seed, ...]: ...
@overload
def seeds_of_parts(seed: Seed | None, parts: int) -> tuple[Seed | None, ...]: ...
@lru_cache(maxsize=4096)
def seeds_of_parts(seed: Seed | None, parts: int) -> tuple[Seed | None, ...]:
    """The seed of each of the equal parts of a vector, which are rotated each by itself."""
    if not isinstance(seed, ScaledSeed):
        return (seed,) * parts
    size = len(seed.factors) // parts
    return tuple(ScaledSeed(seed.seed, seed.factors[start : start + size]) for start in range(0, parts * size, size))
