"""Growing a packed tensor in place.

The room for more tokens is the rest of the tensor's own storage, and the strides say how much there is. So a slice
that drops tokens makes room, a copy that something else made has none, and nothing has to be kept in step.
"""

import torch
from torch import Tensor

LEAST_ROOM = 16  # tokens
ROOM_SHARE = 16  # room is one in so many tokens: memory held in vain against copies made


def append(stored: Tensor, new: Tensor) -> Tensor:
    """Puts tokens behind those there are, in place if there is room.

    Args:
        stored: (batch, heads, tokens, bytes) uint8, made by this function or by slices of its tokens, or any other
            contiguous tensor. Whatever lies behind its tokens in the storage is overwritten.
        new: (batch, heads, new tokens, bytes) uint8.

    Returns:
        (batch, heads, tokens + new tokens, bytes) uint8.
    """
    tokens, more = stored.shape[2], new.shape[2]
    total = tokens + more
    if more <= _room(stored):
        grown = stored.as_strided((*stored.shape[:2], total, stored.shape[3]), stored.stride())
    else:
        room = max(LEAST_ROOM, total // ROOM_SHARE)
        grown = stored.new_empty(*stored.shape[:2], total + room, stored.shape[3])[:, :, :total]
        grown[:, :, :tokens] = stored
    grown[:, :, tokens:] = new
    return grown


def _room(stored: Tensor) -> int:
    """Tokens that fit behind those stored."""
    if stored.is_inference() and not torch.is_inference_mode_enabled():  # then it cannot be written to
        return 0
    batch, heads, tokens, size = stored.shape
    per_head = stored.stride(1)
    capacity = per_head // size
    regular = stored.stride() == (heads * per_head, per_head, size, 1) and per_head % size == 0
    begin = stored.storage_offset()
    if not regular or begin >= per_head or stored.untyped_storage().nbytes() < batch * heads * per_head:
        return 0
    return capacity - begin // size - tokens
