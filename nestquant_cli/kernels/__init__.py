"""One contract, several implementations: `for_device` picks the fastest that runs on a device.

Each is a module with `quantize`, `pack`, `unpack` and `block_errors` as documented in `kernels.reference.nested`. All
decode bit-identically, because decoding is integer arithmetic (see `e8.voronoi`). Those that multiply packed weights
without unpacking them first have the functions of `Products` too.
"""

from importlib.util import find_spec
from typing import Protocol, cast

import torch
from torch import Tensor

from ..e8.code import NestedCode


class Kernels(Protocol):
    """The contract of an implementation; `kernels.reference.nested` documents each function."""

    def quantize(self, x: Tensor, scale: Tensor, code: NestedCode) -> tuple[Tensor, Tensor, int]: ...

    def pack(self, v: Tensor, index: Tensor, code: NestedCode) -> Tensor: ...

    def unpack(self, packed: Tensor, entries: int, code: NestedCode) -> Tensor: ...

    def block_errors(self, x: Tensor, scales: Tensor, multipliers: Tensor, q: int, limit: int) -> Tensor: ...


class Products(Protocol):
    """Products with a packed weight; `kernels.gpu.product` documents each function and limit."""

    FEW_TOKENS: int
    FUSED_TOKENS: int

    def product(self, words: Tensor, row_scale: Tensor, v_a: Tensor, scale_a: Tensor, code: NestedCode) -> Tensor: ...

    def product_one(self, words: Tensor, row_scale: Tensor, x: Tensor, code: NestedCode) -> Tensor: ...

    def product_many(self, words: Tensor, row_scale: Tensor, x: Tensor, code: NestedCode) -> Tensor: ...


def for_device(device: torch.device) -> Kernels:
    """The kernels for tensors on `device`: Triton's need triton, which CUDA builds of torch bring along."""
    if device.type == "cpu":
        from .cpu import nested as cpu

        return cast(Kernels, cpu)
    if _on_triton(device):
        from .gpu import nested as gpu

        return cast(Kernels, gpu)
    from .reference import nested as reference

    return cast(Kernels, reference)


def products_for(device: torch.device) -> Products | None:
    """The products with packed weights on `device`, None where there are none."""
    if not _on_triton(device):
        return None
    from .gpu import product as gpu_product

    return cast(Products, gpu_product)


def _on_triton(device: torch.device) -> bool:
    return device.type == "cuda" and find_spec("triton") is not None
