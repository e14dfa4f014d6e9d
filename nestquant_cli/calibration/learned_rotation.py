"""Learns the rotation of one input, reflections behind the Hadamard rotation, on its tokens and its weights.

What a grid or a lattice loses on a vector grows with its largest entries, and the errors of tokens and of weights come
to the output in the same measure, each as its share of the vectors' energy. So what is minimised is

    Σ ‖P y‖₈² / Σ ‖P y‖²  over tokens   +   Σ ‖P w‖₈² / Σ ‖P w‖²  over rows of weights

by gradient descent over the reflections' vectors, which need no constraint. What was learned is used only where it
makes the codes' own error smaller.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..codecs.registry import fit_vectors
from ..codecs.weights import Shape
from ..parallel.tiles import run_pieces
from ..rotation.reflections import Reflections, compact

NORM = 8  # stands for the largest entry, which has no useful gradient
ROWS = 1024  # vectors of a kind that a step looks at
STEPS = 100
RATE = 0.2  # of a step, relative to the length of a reflector


def learn_reflectors(kinds: Sequence[tuple[Tensor, Shape]], count: int, seed: int) -> Tensor:
    """Reflectors (count, n) float32 for vectors that are rounded; zeros, which reflect nothing, where none help.

    Args:
        kinds: vectors (rows, n) in the basis that is to be reflected, each with what they are rounded to.
        count: number of reflectors.
        seed: seed of their start.
    """
    found: list[Tensor] = []
    run_pieces(lambda _: found.append(_descend(kinds, count, seed)), [None])  # on one thread: the same on any machine
    none = torch.zeros_like(found[0])
    return found[0] if _loss(kinds, found[0], seed) < _loss(kinds, none, seed) else none


def _descend(kinds: Sequence[tuple[Tensor, Shape]], count: int, seed: int) -> Tensor:
    """Reflectors (count, n) of small loss."""
    n = kinds[0][0].shape[1]
    device = kinds[0][0].device
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(-(-count // 2), n, generator=generator) / n**0.5
    vectors = start.repeat_interleave(2, dim=0)[:count].to(device)  # two equal reflections are none at all
    samples = [_spread(rows) for rows, _ in kinds]
    with torch.inference_mode(False), torch.enable_grad():
        samples = [sample.clone() for sample in samples]
        vectors = vectors.clone().requires_grad_()
        optimizer = torch.optim.Adam([vectors], lr=RATE / n**0.5)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        for _ in range(STEPS):
            optimizer.zero_grad()
            V, T = compact(vectors)
            loss = sum(_peaks(sample - ((sample @ V) @ T.t()) @ V.t()) for sample in samples)
            assert isinstance(loss, Tensor)
            loss.backward()
            optimizer.step()
            schedule.step()
    return vectors.detach()


def _spread(rows: Tensor) -> Tensor:
    """At most ROWS of the rows, evenly, at a mean square of 1."""
    step = max(1, len(rows) // ROWS)
    chosen = rows[::step][:ROWS].float()
    size = chosen.square().mean().sqrt()
    return chosen / torch.where(size > 0, size, torch.ones_like(size))


def _peaks(y: Tensor) -> Tensor:
    """Mean of ‖y‖₈² over rows of a common mean square."""
    largest = y.detach().abs().amax(1, keepdim=True).clamp(min=1e-12)  # of the eighth power nothing may overflow
    return (largest.square() * (y / largest).pow(NORM).sum(1, keepdim=True).pow(2 / NORM)).mean()


def _loss(kinds: Sequence[tuple[Tensor, Shape]], vectors: Tensor, seed: int) -> float:
    """Sum over the kinds of the share of energy that rounding loses."""
    turn, total = Reflections.of(vectors), 0.0
    for rows, shape in kinds:
        y = turn.reflect(rows)
        code = fit_vectors(y, shape, seed)
        power = float(y.square().sum(dtype=torch.float64))
        error = float((y - code.round(y).dequantized()).square().sum(dtype=torch.float64))
        total += error / power if power > 0 else 0.0
    return total
