"""The packed cache on the CPU, on torch tensors: coding, decoding and attending to head vectors.

A packed vector is its words followed by the two bytes of its bfloat16 scale, whose sign says whether the center of
the vector's head was subtracted.
"""

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...e8.code import BLOCK, NestedCode, row_bytes
from ..reference import heads as reference
from . import attention as cpu_attention
from . import heads as cpu_heads
from . import nested as cpu
from . import pages as cpu_pages
from .rotate_heads import Turn, head_rotation
from .threads import share


def encode(
    x: Tensor,
    code: NestedCode,
    unit: float,
    seed: int | None,
    restore: bool,
    centers: Tensor | None = None,
    run: int = 1,
) -> tuple[Tensor, Tensor | None]:
    """Subtracts centers, rotates, codes and packs vectors (rows, n) in one pass: `contract.heads.encode_heads`.

    Vectors that are not rotated are the reference's, with this device's rounding.
    """
    if seed is None:
        return reference.encode_heads(x, code, unit, None, restore, centers, run, cpu)
    x = x.float().contiguous()
    rows, n = x.shape
    rotation = head_rotation(n, seed)
    y, factors = np.empty((rows, n), np.float32), np.empty(rows, np.float32)
    v = np.empty((rows, n), np.int8 if code.int8 else np.int16)
    choices = np.empty(rows * (n // BLOCK), np.uint8)
    width = row_bytes(n, code.word_bits)
    packed = torch.empty(rows, width + 2, dtype=torch.uint8)
    flat = v.reshape(-1)
    filled = y, factors, (flat.view(np.int32), flat), choices, packed.numpy()
    heads = _centers(centers, n), run
    fixed = x.numpy(), *heads, rotation.diagonal, rotation.steps, rotation.forward, np.float32(unit), _fixed(code)
    share(cpu_heads.encode.on_team, (*fixed, *filled), rows, n // BLOCK)
    return packed, _restore(v, packed, rotation, heads) if restore else None


def _restore(v: np.ndarray, packed: Tensor, rotation: Turn, heads: tuple[np.ndarray, int]) -> Tensor:
    out = torch.empty(*v.shape, dtype=torch.float32)
    fixed = v, packed.numpy(), *heads, rotation.diagonal, rotation.steps, rotation.backward, out.numpy()
    share(cpu_heads.restore.on_team, fixed, v.shape[0], v.shape[1] // BLOCK)
    return out


def decode(
    packed: Tensor, size: int, code: NestedCode, seed: int | None, centers: Tensor | None = None, run: int = 1
) -> Tensor:
    """Packed vectors (rows, bytes) to (rows, size) float32, with exact sums: `contract.heads.decode_heads`."""
    if seed is None:
        return reference.decode_heads(packed, size, code, None, centers, run, cpu)
    rotation = head_rotation(size, seed)
    out = torch.empty(packed.shape[0], size, dtype=torch.float32)
    heads = _centers(centers, size), run
    fixed = (
        packed.contiguous().numpy(),
        _fixed(code),
        *heads,
        rotation.diagonal,
        rotation.steps,
        rotation.backward,
        out.numpy(),
    )
    share(cpu_heads.decode.on_team, fixed, packed.shape[0], size // BLOCK)
    return out


def attend(
    query: Tensor,
    keys: tuple[Tensor, NestedCode],
    values: tuple[Tensor, NestedCode, int],
    seed: int,
    mask: Tensor | None,
    scale: float,
    centers: Tensor | None = None,
    lse: Tensor | None = None,
) -> Tensor:
    """softmax(scale·query·keysᵀ + mask)·values, at most a tile of keys or values decoded at a time, for up to 64
    queries (batch, key heads, queries, n) of a key head: `contract.heads.attend`."""
    batch, heads, group, n = query.shape
    tokens, size = keys[0].shape[2], values[2]
    chunks = -(-tokens // cpu_attention.CHUNK)
    firsts = np.arange(batch * heads + 1) * chunks
    shape = batch, heads, group, tokens
    added = torch.zeros(1, 1, 1, 1, dtype=torch.float32) if mask is None else mask.float().expand(shape)
    forward = head_rotation(n, seed)
    partial = _partial(firsts[-1], group, size)
    fixed: tuple[Any, ...] = (
        _rows(query),
        _centers(centers, n),
        (heads, tokens),
        _where(keys[0]),
        _where(values[0]),
        added.numpy(),
        mask is not None,
        np.float32(scale),
        _fixed(keys[1]),
        _fixed(values[1]),
        (forward.diagonal, forward.steps, forward.forward),
        partial,
    )
    blocks = cpu_attention.CHUNK * (n + size) // BLOCK
    share(cpu_attention.attend.on_team, fixed, int(firsts[-1]), min(blocks, tokens * n // BLOCK))
    return _merged(partial, firsts, seed, (batch, heads, group, size), lse)


def attend_pages(
    query: Tensor,
    keys: tuple[Tensor, NestedCode],
    values: tuple[Tensor, NestedCode, int],
    table: Tensor,
    lengths: Tensor,
    seed: int,
    scale: float,
    centers: Tensor | None = None,
    window: int | None = None,
) -> Tensor:
    """The same of each request's only query to its keys and values in pages: `contract.heads.attend_pages`."""
    requests, heads, group, n = query.shape
    past = lengths.numpy().astype(np.int64)
    begins = np.zeros_like(past) if window is None else np.maximum(past - window, 0)
    chunks = -(-(past - begins) // cpu_attention.CHUNK)
    firsts = np.concatenate([[0], np.repeat(chunks, heads).cumsum()])
    forward, partial = head_rotation(n, seed), _partial(firsts[-1], group, values[2])
    fixed: tuple[Any, ...] = (
        _rows(query),
        _centers(centers, n),
        (heads, begins, past, firsts),
        _pages(keys[0]),
        _pages(values[0]),
        table.to(torch.int64).contiguous().numpy(),
        np.float32(scale),
        _fixed(keys[1]),
        _fixed(values[1]),
        (forward.diagonal, forward.steps, forward.forward),
        partial,
    )
    longest = min(cpu_attention.CHUNK, int((past - begins).max(initial=0)))
    share(cpu_pages.attend.on_team, fixed, int(firsts[-1]), longest * (n + values[2]) // BLOCK)
    return _merged(partial, firsts, seed, (requests, heads, group, values[2]))


def _partial(parts: int, group: int, size: int) -> tuple[np.ndarray, ...]:
    """Room for what the loops make of each part of the past: sums, peaks and totals."""
    return tuple(np.empty(of, np.float32) for of in ((parts, group, size), (parts, group), (parts, group)))


def _merged(
    partial: tuple[np.ndarray, ...],
    firsts: np.ndarray,
    seed: int,
    shape: tuple[int, int, int, int],
    lse: Tensor | None = None,
) -> Tensor:
    """Attention (batch, key heads, G, n) from that of its parts, which begin at `firsts` for each head."""
    batch, heads, group, size = shape
    backward = head_rotation(size, seed)
    out = torch.empty(batch * heads, group, size, dtype=torch.float32)
    logs = np.empty((batch * heads, group), np.float32) if lse is None else lse.view(-1, group).numpy()
    cpu_attention.merge(partial, firsts, (backward.diagonal, backward.steps, backward.backward), out.numpy(), logs)
    return out.view(shape)


def _rows(query: Tensor) -> np.ndarray:
    """Queries (batch, key heads, G, n) as (batch · key heads, G, n) float32."""
    return query.float().reshape(-1, *query.shape[2:]).contiguous().numpy()


def _centers(centers: Tensor | None, size: int) -> np.ndarray:
    return np.empty((0, size), np.float32) if centers is None else centers.numpy()


def _where(packed: Tensor) -> tuple[Any, ...]:
    """All bytes of a tensor's storage, and where its own begin and how far batches, heads and tokens are apart."""
    stream = packed.as_strided((packed.untyped_storage().nbytes(),), (1,), 0)
    return (stream.numpy(), packed.storage_offset(), *packed.stride()[:3])


def _pages(packed: Tensor) -> tuple[Any, ...]:
    """All bytes of a tensor's storage, where its own begin, how far pages and heads are apart, and their size."""
    stream, offset, *strides, _ = _where(packed)
    return (stream, offset, *strides, *packed.shape[2:])


@lru_cache(maxsize=256)
def _fixed(code: NestedCode) -> tuple[Any, ...]:
    side, limit = np.float32(code.q), np.float32(code.limit)
    return cpu.multipliers_of(code), side, limit, code.q, code.word_bits
