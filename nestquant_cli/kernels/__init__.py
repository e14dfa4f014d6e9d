"""One contract, several implementations: `for_device` picks the fastest that runs on a device.

Each is a module with `quantize`, `pack`, `unpack` and `block_errors` as documented in `kernels.reference`. All decode
bit-identically, because decoding is integer arithmetic (see lattice.voronoi).
"""

from typing import Protocol, cast

import torch
from torch import Tensor

from ..lattice.code import NestedCode


class Kernels(Protocol):
    """The contract of an implementation; `kernels.reference` documents each function."""

    def quantize(self, x: Tensor, scale: Tensor, code: NestedCode) -> tuple[Tensor, Tensor, int]: ...

    def pack(self, v: Tensor, index: Tensor, code: NestedCode) -> Tensor: ...

    def unpack(self, packed: Tensor, entries: int, code: NestedCode) -> Tensor: ...

    def block_errors(self, x: Tensor, scales: Tensor, multipliers: Tensor, q: int, limit: int) -> Tensor: ...


def for_device(device: torch.device) -> Kernels:
    """The kernels for tensors on `device`."""
    if device.type == "cpu":
        from . import cpu

        return cast(Kernels, cpu)
    from . import reference

    return cast(Kernels, reference)
