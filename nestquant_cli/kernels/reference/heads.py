"""Head vectors of keys and values, rotated and packed one by one, in plain torch.

A packed vector is its words followed by the two bytes of its bfloat16 scale, whose sign says whether the center of
the vector's head was subtracted. `rounding` rounds, packs and unpacks, as in `kernels.reference.inputs`.
"""

import torch
from torch import Tensor

from ...e8.code import NestedCode
from ...e8.vectors import centers_of_rows, row_scale, split_vectors, subtract_centers
from ...rotation.integers import unrotate_integers
from ...rotation.transform import rotation
from . import nested
from .inputs import Rounding


def encode_heads(
    x: Tensor,
    code: NestedCode,
    unit: float,
    seed: int | None,
    restore: bool,
    centers: Tensor | None = None,
    run: int = 1,
    rounding: Rounding = nested,
) -> tuple[Tensor, Tensor | None]:
    """Subtracts centers, rotates, rounds and packs vectors (rows, n) in turn: `contract.heads.encode_heads`.

    A scale that rounds to zero in bfloat16 becomes 1, and the vector zeros.
    """
    centered = None
    if centers is not None:
        centered, x = subtract_centers(x.float(), centers_of_rows(centers, len(x), run))
    y = rotation(x.shape[1], seed).apply(x)
    scale = row_scale(y, unit).to(torch.bfloat16)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    v, index, _ = rounding.quantize(y, scale.float(), code)
    signed = scale if centered is None else torch.where(centered, -scale, scale)
    packed = torch.cat([rounding.pack(v, index, code), signed[:, None].view(torch.uint8)], dim=1)
    return packed, decode_heads(packed, x.shape[1], code, seed, centers, run, rounding) if restore else None


def decode_heads(
    packed: Tensor,
    size: int,
    code: NestedCode,
    seed: int | None,
    centers: Tensor | None = None,
    run: int = 1,
    rounding: Rounding = nested,
) -> Tensor:
    """Packed vectors (rows, bytes) to (rows, size) float32, with exact sums: `contract.heads.decode_heads`."""
    words, scale = split_vectors(packed, size, code)
    v = rounding.unpack(words, size, code)
    if centers is None:
        return unrotate_integers(v, scale, seed)
    center = centers_of_rows(centers, len(packed), run)
    return unrotate_integers(v, scale.abs(), seed) + scale.signbit()[:, None] * center


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
    """softmax(scale·query·keysᵀ + mask)·values in float32, all states decoded first: `contract.heads.attend`."""
    k = _decoded_states(keys[0], query.shape[3], keys[1], seed, centers)
    v = _decoded_states(values[0], values[2], values[1], seed, None)
    scores = scale * (query.float() @ k.mT)  # (batch, key heads, queries, tokens)
    scores = scores if mask is None else scores + mask
    if lse is not None:
        torch.logsumexp(scores, dim=-1, out=lse)
    nowhere = (scores == -torch.inf).all(dim=-1, keepdim=True)
    return torch.softmax(scores, dim=-1).masked_fill(nowhere, 0) @ v


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
    """`attend` for each request by itself, its pages put together first: `contract.heads.attend_pages`."""
    out = query.new_zeros(*query.shape[:3], values[2], dtype=torch.float32)
    for request, length in enumerate(lengths.tolist()):
        if length == 0:
            continue
        first = 0 if window is None else max(0, length - window)
        k, v = (_in_order(pages, table[request], length)[None, :, first:] for pages in (keys[0], values[0]))
        states = (k, keys[1]), (v, values[1], values[2])
        out[request] = attend(query[request, None], *states, seed, None, scale, centers)[0]
    return out


def _in_order(pages: Tensor, row: Tensor, tokens: int) -> Tensor:
    """The vectors of a request (key heads, tokens, bytes) from pages (pages, key heads, tokens of a page, bytes)."""
    used = row[: -(-tokens // pages.shape[2])].long()
    return pages[used].transpose(0, 1).flatten(1, 2)[:, :tokens]


def _decoded_states(packed: Tensor, size: int, code: NestedCode, seed: int, centers: Tensor | None) -> Tensor:
    rows = decode_heads(packed.reshape(-1, packed.shape[3]), size, code, seed, centers, packed.shape[2])
    return rows.view(*packed.shape[:3], size)
