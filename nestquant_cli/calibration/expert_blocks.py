"""Divides the experts of a layer into blocks, one pass over the text each, whose sums of outer products fit memory."""

from collections.abc import Sequence

from ..modules.inputs import padded_size

SUM_BYTES = 4  # for each entry of a sum: of float64 the half on and above the diagonal


def blocks_of(inputs: Sequence[tuple[int, int]], budget: int) -> list[list[list[int]]]:
    """Blocks of experts, in order.

    Args:
        inputs: of each input that experts share, its size and the number of experts.
        budget: bytes of the sums of a block; one expert is always taken.

    Returns:
        by block, then by input, numbers of the experts.
    """
    blocks: list[list[list[int]]] = [[[] for _ in inputs]]
    left = budget
    for number, (features, experts) in enumerate(inputs):
        size = SUM_BYTES * padded_size(features) ** 2
        for expert in range(experts):
            if size > left and any(blocks[-1]):
                blocks.append([[] for _ in inputs])
                left = budget
            blocks[-1][number].append(expert)
            left -= size
    return blocks
