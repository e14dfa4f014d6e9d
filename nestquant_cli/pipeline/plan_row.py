"""A line of a plan."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PlanRow:
    """All matrices of one name and shape.

    Attributes:
        name: name of the matrix in its layer.
        matrices: how many there are, over all layers.
        out_features, in_features: rows and columns of each.
        bits: stored bits for each entry, words and row scales.
        bytes: stored bytes of all of them.
        reached: fraction of the tokens that each of them gets: less than 1 for experts that a router chooses.
    """

    name: str
    matrices: int
    out_features: int
    in_features: int
    bits: float
    bytes: int
    reached: float = 1.0
