"""What calibration makes of the sampled tokens of one input: its code, its noise and a learned rotation."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..base.errors import NestQuantError
from ..codecs.registry import fit_heads
from ..codecs.vectors import Rounded, VectorCode
from ..codecs.weights import Shape
from ..parallel.tiles import over_rows
from ..rotation.parted import parted_rotation
from ..rotation.reflections import Reflections
from ..rotation.seeds import scaled
from ..rotation.transform import rotation
from .channel_scales import Behind, energy_about_center

logger = logging.getLogger("nestquant")

_FEW = 64  # tokens that are looked at first for dead channels; nearly every channel is non-zero in one of them


@dataclass(frozen=True)
class InputFit:
    """What was fitted to the sampled tokens of an input.

    Attributes:
        code: code of the activations, or None.
        noise: (n,) float32, E[z²] per token; zero without a code.
        reflectors: (r, n) float32, reflectors of a learned rotation; None without one.
        factors: factors of the channels beside the signs of the rotation; None without.
        energy: mean energy of the sampled tokens in the basis of the statistics; 0 without factors.
    """

    code: VectorCode | None
    noise: Tensor
    reflectors: Tensor | None
    factors: bytes | None = None
    energy: float = 0.0


def fit_input(
    tokens: Sequence[Tensor],
    order: int,
    device: torch.device,
    shape: Shape | None,
    seed: int,
    rotated: bool,
    learned: Callable[[Tensor, bytes | None], Tensor] | None,
    centering: bool,
    parts: int = 1,
    behind: Behind | None = None,
) -> InputFit:
    """Chooses the factors of an input's channels and learns its rotation, where it has them, and fits its code.

    Args:
        tokens: the sample, in parts (tokens, features).
        order: n, the features padded to a multiple of 8.
        device: device of the noise.
        shape: shape of the activation code; None for 16 bits.
        seed: seed of the rotation signs and of the fit.
        rotated: whether the basis is a rotated one.
        learned: function from rotated tokens (tokens, n) and the channels' factors to the reflectors of a learned
            rotation; None without one.
        centering: whether the code may have a center.
        parts: number of parts that are rotated and rounded each by itself; each may have a center.
        behind: the matrices behind the input, for factors of its channels; None for none.
    """
    noise, energy = torch.zeros(order, device=device), 0.0
    code = reflectors = factors = None
    if shape is not None or learned is not None:
        whole = torch.cat(list(tokens))
        original = F.pad(whole.to(device).float(), (0, order - whole.shape[1]))
        sample = over_rows(parted_rotation(order, seed, parts).apply, original) if rotated else original
    if shape is not None and rotated and behind is not None:
        _, rounded = _rounded(sample, shape, seed, centering, parts)
        factors = behind.factors(original, energy_about_center(sample, rounded, seed, parts))
        sample = over_rows(parted_rotation(order, scaled(seed, factors), parts).apply, original)
        energy = math.fsum(sample.square().sum(1).tolist()) / len(sample)
    if learned is not None:
        reflectors = learned(sample, factors)
        sample = over_rows(Reflections.of(reflectors).reflect, sample)
    if shape is not None:
        code, rounded = _rounded(sample, shape, seed, centering, parts)
        noise = (sample - rounded.dequantized()).square().mean(0)
    return InputFit(code, noise, reflectors, factors, energy)


def _rounded(sample: Tensor, shape: Shape, seed: int, centering: bool, parts: int) -> tuple[VectorCode, Rounded]:
    """The code fitted to rotated tokens, and what it makes of them."""
    code = fit_heads(sample.unflatten(1, (parts, -1)).transpose(0, 1), shape, seed, centering)
    return code, code.round(sample) if parts == 1 else code.round_parts(sample, None, parts)


def in_basis(
    hessian: Tensor,
    cross: Tensor | None,
    seed: int,
    rotated: bool,
    reflectors: Tensor | None,
    parts: int = 1,
    factors: bytes | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Moments (n, n) of tokens behind the Hadamard rotation, in the basis in which the statistics are wanted.

    Args:
        hessian: E[x xᵀ].
        cross: E[x₀ xᵀ], or None.
        seed: seed of the rotation signs.
        rotated: whether the basis is a rotated one.
        reflectors: (r, n) reflectors of a learned rotation; None without one.
        parts: number of parts that are rotated each by itself.
        factors: factors of the channels beside the signs of the rotation; None without.
    """
    for rotate in _rotations(len(hessian), seed, rotated, reflectors, parts, factors):
        hessian, cross = _rotated(rotate, hessian, cross)
    return hessian, cross


def rows_in_basis(
    moments: Tensor,
    seed: int,
    rotated: bool,
    reflectors: Tensor | None,
    parts: int = 1,
    factors: bytes | None = None,
) -> Tensor:
    """Moments (m, n) of something else with tokens behind the Hadamard rotation, whose basis alone is changed.

    Args:
        moments: E[y xᵀ].
        seed, rotated, reflectors, parts, factors: as `in_basis` takes them.
    """
    for rotate in _rotations(moments.shape[1], seed, rotated, reflectors, parts, factors):
        moments = over_rows(rotate, moments)
    return moments


def _rotations(
    order: int, seed: int, rotated: bool, reflectors: Tensor | None, parts: int, factors: bytes | None
) -> Iterator[Callable[[Tensor], Tensor]]:
    """The rotations of rows, one after the other, from the basis of the sums to that of the statistics."""
    other = rotated and (parts > 1 or factors is not None)
    if not rotated or other:
        yield rotation(order, seed).inverse
    if other:
        yield parted_rotation(order, scaled(seed, factors), parts).apply
    if reflectors is not None:
        yield Reflections.of(reflectors).reflect


def _rotated(rotate: Callable[[Tensor], Tensor], hessian: Tensor, cross: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Both moments (n, n) in the basis of rotate(x), for a rotation of rows."""

    def both_sides(moments: Tensor) -> Tensor:
        return over_rows(rotate, over_rows(rotate, moments).t()).t()

    rotated = both_sides(hessian)
    return (rotated + rotated.t()).div_(2), None if cross is None else both_sides(cross)


def still_dead(dead: Tensor, tokens: Tensor) -> Tensor:
    """Of the channels `dead`, those that are zero in all `tokens` (tokens, features), too."""
    for some in (tokens[:_FEW], tokens):  # after a few tokens hardly a channel is left to look at
        dead = dead[~some[:, dead].any(0)] if len(dead) else dead
    return dead


def report_dead(place: str, dead: int, features: int) -> None:
    """Logs how many channels of an input are dead; the rotation spreads the others over all columns, and damping does
    the rest."""
    if dead:
        logger.info("%s: %d of %d input channels are zero on all calibration text", place, dead, features)


def not_finite(place: str) -> NestQuantError:
    """The error for an input with values that are not finite."""
    return NestQuantError(
        f"the input of {place} has NaN or infinite values",
        "calibration stopped",
        "check the model's weights, or load it in a wider dtype",
    )
