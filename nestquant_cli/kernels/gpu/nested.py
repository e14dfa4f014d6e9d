"""Nested codes on the GPU: one thread a block, in Triton.

Any word size is decoded and encoded here; only words that are not 32 bits wide are put back to back by torch (see
`pack`). With TRITON_INTERPRET=1 in the environment before triton is first imported, everything runs on CPU tensors,
slowly: that is how the tests run without a GPU.
"""

import torch
from torch import Tensor

from ...e8.code import BLOCK, NestedCode
from ...e8.words import pack_words
from ..contract.constants import CLIP_STEPS
from ..reference import nested as reference
from .encode import errors_kernel, quantize_kernel
from .launch import on, tables
from .product import product, product_many, product_one
from .unpack import unpack
from .words import join_kernel

__all__ = ["block_errors", "encode", "pack", "product", "product_many", "product_one", "quantize", "unpack"]

_TILE = 128  # blocks of a program, one for each of its 4·32 threads


def quantize(x: Tensor, scale: Tensor, code: NestedCode) -> tuple[Tensor, Tensor, int]:
    """Rounds rows to the code (`contract.codes.quantize`). Waits for the device to count the clipped blocks; `encode`
    does not."""
    v, index, overloads = encode(x, scale, code)
    return v, index, int(overloads)


def encode(x: Tensor, scale: Tensor, code: NestedCode) -> tuple[Tensor, Tensor, Tensor]:
    """Rounds rows to the code as `quantize`, with the count of clipped blocks left on the device: (1,) int32."""
    reference.check_rows(x, scale)
    rows, entries = x.shape
    blocks = entries // BLOCK
    total = rows * blocks
    v = torch.empty(rows, entries, dtype=reference.entry_type(code), device=x.device)
    index = torch.empty(rows, blocks, dtype=torch.uint8, device=x.device)
    overloads = torch.zeros(1, dtype=torch.int32, device=x.device)
    if total:
        multipliers, bounds = tables(code, x.device)
        arguments = (
            x.contiguous(),
            1 / scale.float(),
            multipliers,
            bounds,
            v,
            index,
            overloads,
            blocks,
            x.numel(),
            code.k,
        )
        with on(x.device):
            quantize_kernel[(-(-total // _TILE),)](*arguments, LIMIT=code.limit, Q=code.q, STEPS=CLIP_STEPS, TILE=_TILE)
    return v, index, overloads


def pack(v: Tensor, index: Tensor, code: NestedCode) -> Tensor:
    """Packs integers and multiplier indices into words (`contract.codes.pack`).

    Words of 32 bits are written in place; others pass through (rows, blocks) int64.
    """
    rows, blocks = index.shape
    dtype = torch.int32 if code.word_bits == 32 else torch.int64
    words = torch.empty(rows, blocks, dtype=dtype, device=v.device)
    if words.numel():
        multipliers, _ = tables(code, v.device)
        with on(v.device):
            join_kernel[(-(-words.numel() // _TILE),)](
                v.contiguous(), index.contiguous(), words, multipliers, v.numel(), Q=code.q, TILE=_TILE
            )
    return words.view(torch.uint8) if code.word_bits == 32 else pack_words(words, code.word_bits)


def block_errors(x: Tensor, scales: Tensor, multipliers: Tensor, q: int, limit: int) -> Tensor:
    """Squared error of each block under each candidate (`contract.codes.block_errors`)."""
    errors = torch.empty(x.shape[0], scales.shape[0], dtype=torch.float32, device=x.device)
    if errors.numel():
        steps = (scales.to(x.device, torch.float32) * multipliers.to(x.device)).contiguous()
        bounds = torch.div(limit, multipliers, rounding_mode="floor").to(x.device, torch.float32) + 0.5
        with on(x.device):
            errors_kernel[(-(-x.shape[0] // _TILE),)](
                x.contiguous(), steps, bounds, errors, x.numel(), len(steps), Q=q, TILE=_TILE
            )
    return errors
