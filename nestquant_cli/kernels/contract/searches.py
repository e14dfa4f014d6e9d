"""Operations of the K-best searches over whole rows, and decoding of grouped lattices."""

from typing import Protocol

from torch import Tensor

from ...e8.code import NestedCode

# Of a group of columns: its first column, how many it has, the bits of a digit, and the first byte of its digits.
LatticeGroup = tuple[int, int, int, int]


class SearchKernels(Protocol):
    """One panel of columns of a K-best search at a time, and digits back to weights.

    The searches of different devices are equal up to the rounding of float32 sums, and up to ties.
    """

    def search_nested_panel(
        self, t: Tensor, W: Tensor, cost: Tensor, L: Tensor, blocks: Tensor, code: NestedCode, paths: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Chooses the blocks of one panel for every row, last block first, all in units of v.

        Under each multiplier a path branches to the nearest lattice point of its target; with at most FEW_MULTIPLIERS
        of them also to that of the other coset of D8. The paths with the least Σ‖(t − v)·C_b‖² survive a block.

        Args:
            t: (rows, alive, width) float32, targets with the feedback of the columns after the panel; width at most
                PANEL and a multiple of 8.
            W: (rows, width) float32, targets without feedback.
            cost: (rows, alive) float32, of the columns after the panel.
            L: (width, width) float32, the panel's part of the feedback, unit block-lower-triangular.
            blocks: (width/8, 8, 8) float32, the panel's diagonal blocks C_b of C, H + J = C·Cᵀ.
            code: the nested code.
            paths: most that are kept, 1 to MOST_PATHS.

        Returns:
            of the paths that are kept: v (rows, kept, width) float32, the numbers of multipliers (rows, kept, width/8)
            uint8, OVERLOADED for a clipped block, the path from before the panel that each continues (rows, kept)
            int64, and cost (rows, kept).
        """
        ...

    def search_lattice_panel(
        self, residual: Tensor, cost: Tensor, T: Tensor, levels: Tensor, counts: Tensor, kind: Tensor, paths: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Chooses the columns of one panel for every row, last column first: the least ‖y − l(z)·T‖².

        A path branches to the NEAREST_LEVELS levels around its target.

        Args:
            residual: (rows, alive, width) float32, y minus the contribution of the columns after the panel.
            cost: (rows, alive) float32, of the columns after the panel.
            T: (width, width) float32, contiguous, the panel's part of the lower triangle.
            levels: (kinds, most) float32, increasing up to the count of each.
            counts: (kinds,) int64, powers of 2, on the CPU.
            kind: (width,) int64, the row of `levels` that a column has, on the CPU.
            paths: most that are kept.

        Returns:
            of the paths that are kept: digits (rows, kept, width) uint8, their levels as float32, the path from before
            the panel that each continues (rows, kept) int64, and cost (rows, kept).
        """
        ...

    def decode_lattices(
        self, words: Tensor, entries: int, groups: list[LatticeGroup], levels: Tensor, lattices: Tensor
    ) -> Tensor:
        """Decodes grouped lattices: the digits z of each vector of d entries to G·l(z).

        Args:
            words: (rows, bytes) uint8, digits as `e8.digits` packs them, each group from a whole byte on.
            entries: entries of a row.
            groups: the groups of columns in order.
            levels: (groups, most) float32, the levels of each group.
            lattices: (groups, d, d) float32, G of each group, or (1, d, d) for all.

        Returns:
            (rows, entries) float32. Devices take the d terms of an entry in different orders: last bits differ.
        """
        ...
