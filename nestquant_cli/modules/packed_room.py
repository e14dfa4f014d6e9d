"""Growing a packed tensor in place, without a change to what anything else holds.

A tensor that `append` made is the first part of a longer one, its room. Two caches may share such a tensor, or slices
of it: what was written to a room once is never written again. Only a tensor that ends where the room was last written
may grow in place, and one does so once; every other one, such as a slice by whoever, is copied into a room of its own.
"""

import torch
from torch import Tensor

# A tensor that is copied gets room for max(16, tokens/16) more: at most a sixteenth of the memory of a long context
# waits, and growing token by token copies a token 16 times on average at most, whatever the length.
LEAST_ROOM = 16  # tokens
ROOM_SHARE = 16


class _Room:
    """Memory for the tokens of several tensors, of which each token is written once.

    Attributes:
        whole: (batch, heads, tokens, bytes) uint8.
        ends: the number of tokens written, while nobody is about to write; whoever removes it, writes.
    """

    def __init__(self, whole: Tensor, end: int) -> None:
        self.whole, self.ends = whole, {end}

    def claim(self, start: int, stop: int) -> bool:
        """Whether the caller may write these tokens, which nobody can then a second time."""
        if stop > self.whole.shape[2] or (self.whole.is_inference() and not torch.is_inference_mode_enabled()):
            return False  # the second may be read only
        try:
            self.ends.remove(start)  # by one thread alone
        except KeyError:
            return False
        self.ends.add(stop)
        return True


def append(stored: Tensor, new: Tensor) -> Tensor:
    """Puts tokens behind those there are, in place if the tensor has room that nothing else uses.

    Args:
        stored: (batch, heads, tokens, bytes) uint8; one made by this function or by `last` may have room.
        new: (batch, heads, new tokens, bytes) uint8.

    Returns:
        (batch, heads, tokens + new tokens, bytes) uint8. No other tensor sees a change.
    """
    room, begin = _room_of(stored)
    tokens, more = stored.shape[2], new.shape[2]
    end = begin + tokens
    if room is None or not room.claim(end, end + more):
        total = tokens + more
        size = total + max(LEAST_ROOM, total // ROOM_SHARE)
        room, begin, end = _Room(stored.new_empty(*stored.shape[:2], size, stored.shape[3]), total), 0, tokens
        room.whole[:, :, :tokens] = stored
    room.whole[:, :, end : end + more] = new
    return _view(room, begin, end + more)


def last(stored: Tensor, tokens: int) -> Tensor:
    """The last tokens of stored (batch, heads, tokens, bytes), which can grow as that could."""
    room, begin = _room_of(stored)
    dropped = max(0, stored.shape[2] - tokens)
    return stored[:, :, dropped:] if room is None else _view(room, begin + dropped, begin + stored.shape[2])


def _view(room: _Room, begin: int, end: int) -> Tensor:
    """Tokens begin … of a room, which know where they stand."""
    view = room.whole[:, :, begin:end]
    view.room = room, begin  # type: ignore[attr-defined] # no operation of torch hands it on, but for copy.deepcopy
    return view


def _room_of(stored: Tensor) -> tuple[_Room | None, int]:
    """The room of a tensor and its first token there."""
    room: tuple[_Room | None, int] = getattr(stored, "room", (None, 0))
    return room
