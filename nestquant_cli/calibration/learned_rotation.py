"""Learns the rotation of one input, reflections after the Hadamard rotation, on its tokens and its weights.

The error of a grid or a lattice on a vector grows with the vector's largest entries. Errors of tokens and of weights
reach the output in the same measure, each as a share of the vectors' energy. So what is minimised is

    Σ ‖P y‖₈² / Σ ‖P y‖²  over tokens   +   Σ ‖P w‖₈² / Σ ‖P w‖²  over rows of weights

by gradient descent over the reflections' vectors, which need no constraint. The learned reflections are used only
where they make the codes' own error smaller. `hadamard` is the default: SpinQuant's recipe with 16 reflections took KL
from QuaRot's 0.502 to 0.445 at W4A4KV4, and stores 0.24 bits a weight more on the demo model (docs/quality.md).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..codecs.registry import fit_vectors
from ..codecs.weights import Shape
from ..parallel.tiles import run_pieces
from ..rotation.reflections import Reflections, compact

NORM = 8  # the 8-norm stands for the largest entry, which has a gradient in one place only
ROWS = 1024  # vectors of a kind that the loss is computed on, at most
STEPS = 100  # steps of Adam
RATE = 0.2  # highest rate of Adam, relative to the root mean square of a reflector of unit length


def learn_reflectors(kinds: Sequence[tuple[Tensor, Shape]], count: int, seed: int) -> Tensor:
    """Learns reflectors (count, n) float32; zeros, which reflect nothing, where none make the error smaller.

    Args:
        kinds: tokens and rows of weights, each (rows, n) after the Hadamard rotation, with the shapes of their codes.
        count: number of reflectors.
        seed: seed of the start and of the fits.
    """
    learned: list[Tensor] = []
    run_pieces(lambda _: learned.append(_descend(kinds, count, seed)), [None])  # on one thread: the same on any machine
    none = torch.zeros_like(learned[0])
    return learned[0] if _loss(kinds, learned[0], seed) < _loss(kinds, none, seed) else none


def _descend(kinds: Sequence[tuple[Tensor, Shape]], count: int, seed: int) -> Tensor:
    """Reflectors (count, n) after STEPS steps of Adam, from random ones in pairs, which reflect nothing."""
    n = kinds[0][0].shape[1]
    device = kinds[0][0].device
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(-(-count // 2), n, generator=generator) / n**0.5
    vectors = start.repeat_interleave(2, dim=0)[:count].to(device)  # two equal reflections cancel each other
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
    """Mean of ‖y‖₈² over rows (rows, n) of a common mean square."""
    largest = y.detach().abs().amax(1, keepdim=True).clamp(min=1e-12)  # scaled by it, so that no eighth power overflows
    return (largest.square() * (y / largest).pow(NORM).sum(1, keepdim=True).pow(2 / NORM)).mean()


def _loss(kinds: Sequence[tuple[Tensor, Shape]], vectors: Tensor, seed: int) -> float:
    """Sum over the kinds of ‖y − Q(y)‖² / ‖y‖², with codes fitted to the reflected vectors."""
    turn, total = Reflections.of(vectors), 0.0
    for rows, shape in kinds:
        y = turn.reflect(rows)
        code = fit_vectors(y, shape, seed)
        power = float(y.square().sum(dtype=torch.float64))
        error = float((y - code.round(y).dequantized()).square().sum(dtype=torch.float64))
        total += error / power if power > 0 else 0.0
    return total
