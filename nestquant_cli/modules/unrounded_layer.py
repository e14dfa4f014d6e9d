"""What a cache layer keeps unrounded besides its packed bytes, and lays over what it decodes.

A packed layer has the bytes of all its tokens, so that what leaves the window is there already. What is unrounded is
kept a second time: a few tokens, whatever the length of the context. A token that has left the window stays rounded,
even if the cache is then cropped by more than SLACK tokens.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from ..base.errors import NestQuantError
from .mixed_states import MixedStates
from .packed_attention import PackedStates
from .unrounded import ALL_ROUNDED, Beside, Kept, Padding, Reach, Unrounded


class UnroundedLayer(DynamicLayer):
    """A cache layer that may keep some of its tokens unrounded.

    Attributes:
        unrounded: which tokens are seen unrounded.
        padding: that of the cache's sequences.
        kept: unrounded keys and values; None where all are rounded, and before the first token.
    """

    unrounded: Unrounded = ALL_ROUNDED
    padding: Padding
    kept: tuple[Kept, Kept] | None = None

    def mixed(
        self,
        kept: tuple[Kept, Kept],
        seen: tuple[Tensor, Tensor],
        states: tuple[Tensor, Tensor],
        past: int,
        starts: Tensor | None = None,
    ) -> tuple[tuple[Kept, Kept], tuple[Tensor, Tensor]]:
        """Puts unrounded states over rounded ones.

        Args:
            kept: unrounded keys and values so far.
            seen: rounded keys and values (batch, heads, tokens, head size) that new tokens look at, their own included.
            states: those of the new tokens, as they are.
            past: number of tokens before.
            starts: tokens of padding of each sequence, (batch,); None takes those of the cache.

        Returns:
            what is kept now, and what the new tokens see.
        """
        if torch.compiler.is_compiling():
            raise NestQuantError(
                "keys and values that are unrounded in a window are not for torch.compile",
                "nothing was computed",
                "run the model without it, or quantize without --kv-window and --kv-sinks",
            )
        wanted, starts = self.unrounded, self.padding.starts if starts is None else starts
        grown: list[Kept] = []
        found: list[Tensor] = []
        for rounded, new, held in zip(seen, states, kept, strict=True):
            more, recent = held.grown(new, past, wanted, starts if wanted.sinks else None)
            tokens = rounded.shape[2]
            recent = recent[:, :, max(0, recent.shape[2] - tokens) :]
            reach = Reach(
                tokens, new.shape[2], wanted.window, recent.shape[2], wanted.sinks, more.first.shape[2], starts
            )
            grown.append(more)
            found.append(_laid(rounded, Beside(recent, more.first, reach), not found))
        return (grown[0], grown[1]), (found[0], found[1])

    def crop(self, tokens_to_remove: int) -> None:
        before = self.get_seq_length()
        super().crop(tokens_to_remove)
        left = self.get_seq_length()
        if self.kept is not None:
            self.kept = self.kept[0].cropped(before - left, left), self.kept[1].cropped(before - left, left)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        super().reorder_cache(beam_idx)
        self._each_kept(lambda states: states.index_select(0, beam_idx.to(states.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self._each_kept(lambda states: states.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._each_kept(lambda states: states[indices])

    def offload(self) -> None:
        super().offload()
        self._each_kept(lambda states: states.to("cpu", non_blocking=True))

    def prefetch(self) -> None:
        super().prefetch()
        self._each_kept(lambda states: states.to(self.device, non_blocking=True))

    def _each_kept(self, change: Callable[[Tensor], Tensor]) -> None:
        if self.kept is not None:
            keys, values = (Kept(change(each.recent), change(each.first)) for each in self.kept)
            self.kept = keys, values


def _laid(rounded: Tensor, beside: Beside, keys: bool) -> Tensor:
    """What new tokens see of rounded states (batch, heads, tokens, head size) and unrounded ones beside them."""
    if beside.reach.new == 1 and isinstance(rounded, PackedStates):
        rounded.beside = beside
        return rounded
    if beside.reach.new == 1:
        return beside.of_one(rounded)
    return beside.recent if beside.reach.whole else MixedStates(rounded, beside.laid_over(rounded), beside.reach, keys)
