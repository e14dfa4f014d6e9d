"""What the matrices behind an input decide in its fit: the factors of its channels, and its learned rotation."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..parallel.tiles import over_rows
from ..rotation.seeds import dual, scaled
from ..rotation.transform import rotation
from .channel_scales import Behind
from .fit_settings import FitSettings
from .learned_rotation import learn_reflectors


def behind(settings: FitSettings, linears: Sequence[nn.Linear]) -> Behind | None:
    """The matrices behind an input, for the factors of its channels; None where it has none.

    Args:
        settings: codes and rotation to fit.
        linears: the Linears that take the input.
    """
    if not settings.channel_scales or settings.act_shape is None:
        return None
    return Behind.of([linear.weight for linear in linears], settings.weight_shape, settings.act_shape)


def learning(
    settings: FitSettings, linears: Sequence[nn.Linear], most: int | None = None
) -> Callable[[Tensor, bytes | None], Tensor] | None:
    """A function from rotated tokens (tokens, n) and the channels' factors to the reflectors of a learned rotation.

    Args:
        settings: codes and rotation to fit.
        linears: the Linears that take the input.
        most: number of their rows that are looked at, about; None looks at all.

    Returns:
        None where no rotation is learned.
    """
    if settings.rotation != "learned":
        return None

    def learned(tokens: Tensor, factors: bytes | None) -> Tensor:
        kinds = [] if settings.act_shape is None else [(tokens, settings.act_shape)]
        if settings.weight_shape is not None:
            hadamard = rotation(tokens.shape[1], dual(scaled(settings.rotation_seed, factors)))
            step = 1 if most is None else max(1, sum(linear.out_features for linear in linears) // most)
            rows = torch.cat([linear.weight.detach()[::step].float() for linear in linears])
            padded = F.pad(rows.to(tokens.device), (0, tokens.shape[1] - rows.shape[1]))
            kinds.append((over_rows(hadamard.apply, padded), settings.weight_shape))
        return learn_reflectors(kinds, settings.reflections, settings.seed)

    return learned
