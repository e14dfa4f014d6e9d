"""How far two next-token distributions are apart: KL divergence and agreement on the most likely token."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def divergence(reference: "Tensor", other: "Tensor") -> tuple["Tensor", "Tensor"]:
    """KL(reference || other) and top-1 agreement of each token.

    Args:
        reference: (tokens, vocabulary) float32 log-probabilities of the original model.
        other: (tokens, vocabulary) float32 log-probabilities of the quantized one.

    Returns:
        (tokens,) float32 in nats, and (tokens,) bool.
    """
    kl = (reference.exp() * (reference - other)).sum(dim=-1)
    return kl, reference.argmax(dim=-1) == other.argmax(dim=-1)
