"""Products of packed weights with activations on the GPU.

The words are decoded inside the product. For a few tokens that saves the traffic of the decoded weight; for many, every
tile of tokens would decode the whole weight again, so it is decoded once, to int8, and multiplied from there.
docs/kernels.md has the counts that the limits below follow from.
"""

import torch
from torch import Tensor

from ...e8.code import BLOCK, NestedCode, row_bytes
from ..limits import LIMITS
from .launch import on, tables, word_rows
from .tiles import dot_kernel, packed_tile_kernel, tile_kernel
from .unpack import unpack

FEW_TOKENS = LIMITS["gpu"].dot_tokens
FUSED_TOKENS = LIMITS["gpu"].fused_tokens
_ROWS, _WORDS = 4, 64  # of the weight, for a program of `product_one` in one step
_PROGRAMS = 1024  # fewer leave processors idle; then the input dimension is split


def product(words: Tensor, row_scale: Tensor, v_a: Tensor, scale_a: Tensor, code: NestedCode) -> Tensor:
    """Product of a packed weight with integer activations: exact int32 sums, then the scales.

    Args:
        words: (rows, row bytes) uint8, of any size; entries beyond the limit, which no encoder writes, wrap as they
            do in `unpack`.
        row_scale: (rows,) floating point, the size of v = 1 in each row of the weight.
        v_a: (tokens, entries) int8.
        scale_a: (tokens,) float32.
        code: code of the weight.

    Returns:
        (tokens, rows) float32: sums·scale_a·row_scale.

    Raises:
        ValueError: the shapes do not fit together, or either side is not int8.
    """
    _check(words, row_scale, v_a, code)
    if v_a.dtype != torch.int8 or not code.int8 or scale_a.shape != v_a.shape[:1]:
        raise ValueError(f"no exact product of {v_a.dtype} by {tuple(scale_a.shape)} scales and limit {code.limit}")
    return _tiles(words, row_scale, v_a, scale_a, code)


def product_many(words: Tensor, row_scale: Tensor, x: Tensor, code: NestedCode) -> Tensor:
    """Product of a packed weight of an int8 code with bfloat16 or float16 activations, sums in float32.

    Args:
        words, row_scale, code: as in `product`; entries beyond the limit need not wrap.
        x: (tokens, entries), rotated.

    Returns:
        (tokens, rows) float32.

    Raises:
        ValueError: the shapes do not fit together, or the types are others.
    """
    _check(words, row_scale, x, code)
    if x.dtype not in (torch.bfloat16, torch.float16) or not code.int8:
        raise ValueError(f"no product of {x.dtype} tokens with a code of limit {code.limit}")
    ones = torch.ones(x.shape[0], dtype=torch.float32, device=x.device)
    return _tiles(words, row_scale, x, ones, code)


def product_one(words: Tensor, row_scale: Tensor, x: Tensor, code: NestedCode) -> Tensor:
    """Product of a packed weight of any code with up to FEW_TOKENS activations, in float32 throughout.

    Args:
        words, row_scale, code: as in `product`, int16 codes too; entries beyond the limit do not wrap.
        x: (tokens, entries) floating point, rotated.

    Returns:
        (tokens, rows) float32. The sums are taken in an order that depends on the shapes alone.

    Raises:
        ValueError: the shapes do not fit together, or there are more tokens.
    """
    _check(words, row_scale, x, code)
    tokens, entries = x.shape
    if tokens > FEW_TOKENS:
        raise ValueError(f"{tokens} tokens are more than {FEW_TOKENS}")
    rows, blocks = words.shape[0], entries // BLOCK
    row_programs = -(-rows // _ROWS)
    steps = max(1, -(-blocks // _WORDS))
    parts = min(steps, max(1, _PROGRAMS // max(1, row_programs)))
    sums = torch.zeros(parts, tokens, rows, dtype=torch.float32, device=x.device)
    if sums.numel() and blocks:
        turned = x.float().view(tokens, blocks, BLOCK).transpose(1, 2).contiguous()  # entry by entry, as threads read
        stream, width = word_rows(words, code)
        multipliers, _ = tables(code, x.device)
        arguments = stream, turned, row_scale, multipliers, sums, code.k - 1, rows, blocks, width, -(-steps // parts)
        constants = {"Q": code.q, "BITS": code.word_bits, "TOKENS": tokens, "ROWS": _ROWS, "WORDS": _WORDS}
        with on(x.device):
            dot_kernel[(row_programs, parts)](*arguments, **constants)
    return sums[0] if parts == 1 else sums.sum(0)


def _tiles(words: Tensor, row_scale: Tensor, a: Tensor, scale_a: Tensor, code: NestedCode) -> Tensor:
    """The product tile by tile on tensor cores, decoding in the tile or before."""
    tokens, entries = a.shape
    rows = words.shape[0]
    y = torch.zeros(tokens, rows, dtype=torch.float32, device=a.device)
    if not y.numel() or not entries:
        return y
    a, scale_a = a.contiguous(), scale_a.float().contiguous()
    if a.dtype == torch.bfloat16 and not a.is_cuda:  # Triton's interpreter multiplies no bfloat16
        a = a.float()
    if tokens <= FUSED_TOKENS:
        shape = {"TOKENS": max(16, 1 << (tokens - 1).bit_length()), "ROWS": 64, "ENTRIES": 128}
        stream, width = word_rows(words, code)
        multipliers, _ = tables(code, a.device)
        arguments = a, scale_a, stream, row_scale, multipliers, y, code.k - 1, tokens, rows, entries, width
        with on(a.device):
            packed_tile_kernel[(-(-rows // shape["ROWS"]),)](*arguments, Q=code.q, BITS=code.word_bits, **shape)
        return y
    shape = {"TOKENS": 128, "ROWS": 128, "ENTRIES": 64}
    grid = -(-tokens // shape["TOKENS"]) * -(-rows // shape["ROWS"])
    v = unpack(words, entries, code)
    with on(a.device):
        tile_kernel[(grid,)](a, scale_a, v, row_scale, y, tokens, rows, entries, **shape, num_warps=8)
    return y


def _check(words: Tensor, row_scale: Tensor, x: Tensor, code: NestedCode) -> None:
    if x.dim() != 2 or row_scale.shape != words.shape[:1] or words.shape[1] != row_bytes(x.shape[1], code.word_bits):
        raise ValueError(
            f"words {tuple(words.shape)} with {tuple(row_scale.shape)} row scales do not multiply {tuple(x.shape)}"
        )
