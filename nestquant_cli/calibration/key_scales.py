"""Factors of the channels of keys, in front of their rotation.

A score is q·k, so the error of a coded key counts by E[q qᵀ] over the queries that meet it, those of all query heads
that share the head of the key. With c_i the energy of channel i of the keys about their center and w_i that of the
queries, coding s·k costs ε·Σ(c s²)·Σ(w/s²)/n, which is least at

    s_i = (w_i / c_i)^¼
"""

import torch
from torch import Tensor

from ..codecs.vectors import VectorCode
from ..e8.vectors import subtract_centers
from ..rotation.transform import rotation
from .channel_scales import channel_factors
from .kv_observer import Sample


def key_factors(sample: Sample, rotated: Tensor, code: VectorCode, seed: int | None) -> tuple[bytes, ...] | None:
    """The factors that cost least, for each head; None where the queries of a head were not seen.

    Args:
        sample: keys and the queries that met them.
        rotated: the keys rotated, (heads, vectors, head size) float32.
        code: a code of the rotated keys, which has their centers.
        seed: seed of the rotation signs; None where nothing is rotated.
    """
    queries = sample.queries.sum(0)
    if not bool((queries.sum(-1) > 0).all()):
        return None
    centers = code.centers(rotated.shape[-1], rotated.device)
    if centers is not None:
        pairs = zip(rotated, centers.dequantized(), strict=True)
        rotated = torch.stack([subtract_centers(keys, center[None])[1] for keys, center in pairs])
    energy = rotation(rotated.shape[-1], seed).inverse(rotated).double().square().mean(1)
    return tuple(channel_factors(c, w, share=0.0) for c, w in zip(energy, queries, strict=True))
