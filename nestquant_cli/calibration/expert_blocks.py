"""Divides the experts of a layer into blocks, one pass over the text each, whose sums of outer products fit memory."""

from collections.abc import Sequence

from ..modules.inputs import padded_size
from .gram import TOGETHER
from .upper_triangle import bytes_of_sum

_FEWEST_TOGETHER = 1024  # tokens in one product, if many experts wait with theirs


def tokens_together(experts: int) -> int:
    """Tokens that are gathered for one product of an expert: fewer where many experts wait with theirs."""
    return max(_FEWEST_TOGETHER, TOGETHER // experts)


def expert_bytes(features: int, experts: int) -> int:
    """Bytes of the sum of one of `experts` experts with inputs of `features`, and of the tokens that wait for it."""
    order = padded_size(features)
    return bytes_of_sum(order) + tokens_together(experts) * order


def blocks_of(inputs: Sequence[tuple[int, int]], budget: int) -> list[list[list[int]]]:
    """Blocks of experts, in order.

    Args:
        inputs: of each input that experts share, its size and the number of experts.
        budget: bytes of the sums of a block, with the tokens that wait; one expert is always taken.

    Returns:
        by block, then by input, numbers of the experts.
    """
    blocks: list[list[list[int]]] = [[[] for _ in inputs]]
    left = budget
    for number, (features, experts) in enumerate(inputs):
        size = expert_bytes(features, experts)
        for expert in range(experts):
            if size > left and any(blocks[-1]):
                blocks.append([[] for _ in inputs])
                left = budget
            blocks[-1][number].append(expert)
            left -= size
    return blocks
