"""What a subclass of nn.Linear computes, found by trying it: W x, as nn.Linear does, or something else.

DeepSeek V4 projects the output of its heads group by group, by a matrix whose blocks are one below another in the
weight of such a subclass.
"""

from contextlib import suppress

import torch
from torch import nn

_MOST_GROUPS = 256


def is_plain(linear: nn.Linear) -> bool:
    """Whether a module computes W x + b: nn.Linear, this package's own Linears, and subclasses that agree in shape."""
    if type(linear).forward is nn.Linear.forward or type(linear).__module__.split(".")[0] == __name__.split(".")[0]:
        return True
    return _shape(linear, 2) == (2, linear.out_features)


def groups_of(module: nn.Module) -> int:
    """Number of groups of a Linear whose weight (groups · rows, in) has a matrix for each group; 0 for other modules.

    It takes (tokens, groups, in) to (tokens, groups, rows).
    """
    if not isinstance(module, nn.Linear) or "weight" not in module._parameters or is_plain(module):
        return 0
    for groups in range(2, _MOST_GROUPS + 1):
        rows, rest = divmod(module.out_features, groups)
        if (
            not rest
            and "bias" not in dict(module.named_parameters())
            and _shape(module, 2, groups) == (2, groups, rows)
        ):
            return groups
    return 0


def _shape(linear: nn.Linear, *sizes: int) -> tuple[int, ...] | None:
    """Shape of what comes of zeros (…, in); None where that is refused, or is no tensor."""
    with suppress(Exception), torch.no_grad():  # any error of code that wants another shape
        zeros = torch.zeros(*sizes, linear.in_features, dtype=linear.weight.dtype, device=linear.weight.device)
        return tuple(linear.forward(zeros).shape)
    return None
