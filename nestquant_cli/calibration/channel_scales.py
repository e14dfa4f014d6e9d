"""Factors of the channels of an input, in front of its rotation: tokens times s, columns of its weights by 1/s.

The error of a code is in proportion to the energy of what it rounds, and the rotation spreads it evenly over all
channels. Neither changes with a rotation, and both change with s. With c_i the energy of channel i about its center,
and w_i that of the columns i of the matrices behind it, each relative to the energy of its output, rounding the tokens
costs ε_a·Σ(c s²)·Σ(w/s²)/n. With t = s² and shares of the sums p_i ∝ c_i t_i and q_i ∝ w_i/t_i, that is least at p = q:

    s_i = (w_i / c_i)^¼

Rounding the weights costs ε_w·g·Σ(w/s²), with g the geometric mean of the variances of each channel given the others:
of H + J's in LDLQ. That is least, for a given g, where every q_i is 1/n. Both together are least where

    q_i = (1 − θ)·p_i + θ/n,   θ = ε_w g / (ε_w g + ε_a Σ(c s²)/n)
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..codecs.vectors import Rounded
from ..codecs.weights import Shape
from ..e8.code import BLOCK
from ..parallel.tiles import product
from ..rotation.parted import parted_rotation
from ..rotation.seeds import bytes_of

_TOKENS = 256  # tokens that the energy of outputs is measured on
_ROUNDS = 30  # of solving for t with the sums of the round before
_LEAST = 1e-4  # of the mean energy, what a channel is taken to have at least: others may come with other text
# g as a share of the mean energy of a channel.
_CONDITIONAL = 0.2


@dataclass(frozen=True)
class Behind:
    """The matrices behind an input.

    Attributes:
        weights: (rows, features) each.
        share: θ.
    """

    weights: Sequence[Tensor]
    share: float

    @staticmethod
    def of(weights: Sequence[Tensor], weight_shape: Shape | None, act_shape: Shape) -> "Behind":
        """Matrices that are rounded with one shape, or None, behind tokens that are rounded with another."""
        if weight_shape is None:
            return Behind(weights, 0.0)
        ratio = 4.0 ** ((weight_shape.word_bits - act_shape.word_bits) / BLOCK)  # ε_a / ε_w
        return Behind(weights, _CONDITIONAL / (_CONDITIONAL + ratio))

    def factors(self, tokens: Tensor, energy: Tensor) -> bytes:
        """The factors that cost least.

        Args:
            tokens: (tokens, n) float32, padded.
            energy: (n,) float64, c.
        """
        return channel_factors(energy, column_energy(self.weights, tokens), self.share)


def channel_factors(energy: Tensor, columns: Tensor, share: float) -> bytes:
    """The factors that cost least, as `rotation.seeds` has them, with a geometric mean of 1.

    Args:
        energy: (n,) float64, c.
        columns: (n,) float64, w.
        share: θ.
    """
    c, w = (_at_least(each) for each in (energy, columns))
    n, t = len(c), (w / c).sqrt()
    for _ in range(_ROUNDS):
        a, b, k = (1 - share) * c / (c * t).sum(), share / n, w / (w / t).sum()  # a t² + b t = k
        root = (b * b + 4 * a * k).sqrt()
        t = (t * 2 * k / (b + root)).sqrt()
    return bytes_of((t / t.log().mean().exp()).sqrt().cpu().numpy())


def _at_least(energy: Tensor) -> Tensor:
    mean = energy.mean()
    return energy.clamp(min=float(mean) * _LEAST) if mean > 0 else torch.ones_like(energy)


def energy_about_center(rotated: Tensor, rounded: Rounded, seed: int, parts: int) -> Tensor:
    """Mean square (n,) float64 of each channel of tokens, less the center where the code subtracts it.

    Args:
        rotated: (tokens, n) float32.
        rounded: what their code made of them.
        seed, parts: of the rotation.
    """
    order = rotated.shape[1]
    if rounded.centered is not None and rounded.center is not None:
        where = (
            rounded.centered.float().repeat_interleave(order // parts, 1) if parts > 1 else rounded.centered[:, None]
        )
        rotated = rotated - where * rounded.center
    back = parted_rotation(order, seed, parts).inverse(rotated)
    return back.double().square().mean(0)


def column_energy(weights: Iterable[Tensor], tokens: Tensor) -> Tensor:
    """Energy of the columns of all matrices behind an input, each relative to the energy of its output: (n,) float64.

    Args:
        weights: (rows, features) each.
        tokens: (tokens, n) float32, padded.
    """
    few = tokens[:: max(1, len(tokens) // _TOKENS)]
    total = torch.zeros(tokens.shape[1], dtype=torch.float64, device=tokens.device)
    for weight in weights:
        W = F.pad(weight.detach().to(tokens.device, torch.float32), (0, tokens.shape[1] - weight.shape[1]))
        power = math.fsum(product(W, few.t()).square().sum(1, dtype=torch.float64).tolist()) / len(few)
        if power > 0:
            total += W.square().sum(0, dtype=torch.float64) / power
    return total
