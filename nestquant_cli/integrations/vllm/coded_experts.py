"""The product of a layer of experts whose matrices are packed: vLLM routes, and what was routed to is decoded."""

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor

from ...models.experts import ExpertMatrices
from ...modules.grouped_experts import Steps, routed_sum

Activation = Callable[[Tensor], Tensor]


def _gated(function: Activation, up: Tensor) -> Tensor:
    gate, value = up.chunk(2, dim=-1)
    return function(gate) * value


_gelu_tanh = partial(F.gelu, approximate="tanh")
# By vLLM's names. Of the gated ones only those where gate and up are one below the other, as in the checkpoint.
ACTIVATIONS: dict[str, Activation] = {
    "silu": partial(_gated, F.silu),
    "gelu": partial(_gated, F.gelu),
    "gelu_tanh": partial(_gated, _gelu_tanh),
    "silu_no_mul": F.silu,
    "gelu_no_mul": F.gelu,
    "gelu_tanh_no_mul": _gelu_tanh,
    "relu2_no_mul": lambda x: F.relu(x).square(),
}


class CodedExperts:
    """The product of a layer of experts.

    Args:
        up: the first matrix of each expert.
        down: the last one.
        activation: what is between them.
    """

    def __init__(self, up: ExpertMatrices, down: ExpertMatrices, activation: Activation) -> None:
        self._up, self._down = up, down
        self._steps = Steps(lambda y, _: activation(y), lambda y, _: y, False)

    def routed(self, x: Tensor, weights: Tensor, choice: Tensor) -> Tensor:
        """What the chosen experts give, times their weights and summed up: (tokens, hidden size) like x.

        Args:
            x: (tokens, hidden size).
            weights: (tokens, k) what the outputs are multiplied with.
            choice: (tokens, k) experts; those beyond the last one give nothing.
        """
        return routed_sum(self._up, self._down, self._steps, x, choice, weights)
