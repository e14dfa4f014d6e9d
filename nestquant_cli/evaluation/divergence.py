"""Distance of two next-token distributions: KL divergence, and agreement on the most likely token.

Recipes are compared by these two. They compare token by token, so the difficulty of the text cancels, while a single
perplexity moves by 0.1 to 0.4 with the calibration windows or the processor.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def divergence(reference: "Tensor", other: "Tensor") -> tuple["Tensor", "Tensor"]:
    """KL(reference || other) and top-1 agreement of each token.

    Args:
        reference: (tokens, vocabulary) float32 log-probabilities of the original model.
        other: (tokens, vocabulary) float32 log-probabilities of the quantized one.

    Returns:
        (tokens,) float32 KL divergence in nats, and (tokens,) bool, whether both rank the same token first.
    """
    kl = (reference.exp() * (reference - other)).sum(dim=-1)
    return kl, reference.argmax(dim=-1) == other.argmax(dim=-1)
