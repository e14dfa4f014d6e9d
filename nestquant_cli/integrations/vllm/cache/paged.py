"""Packed keys and values of one attention layer in the pages of a serving engine.

A page has a row of bytes for each key head: the packed keys of its tokens back to back, then their packed values. What
is stored and what is seen is that of `modules.cache.PackedCache`: new keys and values are rounded before anything looks
at them, and one token attends to the packed bytes. Several tokens of a request attend to its decoded past.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ....codecs.vectors import AttentionForm
from ....kernels import for_device, has
from ....modules.cache_codes import CacheCodes, unpack_heads
from .batch import Batch, Run, Slots, batch_of


class PagedLayer:
    """Writes keys and values of one layer to pages and attends to them.

    Args:
        codes: codes of the keys and values of these heads.
        seed: seed of the rotation signs; None does not rotate.
        sizes: entries of a key and of a value.
        scale: factor of the scores.
        window: how many of the last tokens a token sees; None for all.
        queries: query heads of a key head.

    Attributes:
        cell: bytes of the key and the value of a head and token.
    """

    def __init__(
        self,
        codes: CacheCodes,
        seed: int | None,
        sizes: tuple[int, int],
        scale: float,
        window: int | None,
        queries: int,
    ) -> None:
        self.codes, self.seed, self.sizes, self.scale, self.window = codes, seed, sizes, scale, window
        self.queries = queries
        self._bytes = codes.keys.vector_bytes(sizes[0]), codes.values.vector_bytes(sizes[1])
        self.cell = sum(self._bytes)
        self._forms = self._kernel_forms(torch.device("cpu"), queries)
        self._pages: Tensor | None = None  # the tensor that `_views` are of
        self._views: tuple[Tensor, Tensor]

    def store(self, key: Tensor, value: Tensor, pages: Tensor, slots: Slots) -> None:
        """Packs new tokens and puts them where they belong.

        Args:
            key, value: (tokens, key heads, entries) floating point.
            pages: (pages, key heads, tokens of a page, bytes) uint8, at least `cell` bytes; those of a page and head
                back to back.
            slots: where each token goes.
        """
        kept, page, place = slots.places(pages.shape[2])
        if kept is not None:
            key, value = key[kept], value[kept]
        views = self._split(pages)
        for states, code, view in zip((key, value), (self.codes.keys, self.codes.values), views, strict=True):
            rows = states.reshape(-1, states.shape[2])
            packed, _ = code.encode_heads(rows, self.seed, 1, restore=False)
            view[page, :, place] = packed.view(*states.shape[:2], -1)

    def attend(self, query: Tensor, pages: Tensor, batch: Batch, out: Tensor) -> None:
        """Attention of the tokens of a step to the pages of their requests, where their own keys and values are, too.

        Args:
            query: (tokens, query heads, entries of a key) floating point.
            pages: as for `store`.
            batch: the requests.
            out: (tokens, query heads, entries of a value), filled.
        """
        keys, values = self._split(pages)
        if self._forms is not None and len(batch.lengths):
            self._attend_alone(query, (keys, values), batch, out)
        for run in batch.all_runs() if self._forms is None else batch.runs:
            out[run.start : run.stop] = self._attend_run(query[run.start : run.stop], (keys, values), run)

    def warm_up(self, heads: int, dtype: torch.dtype) -> None:
        """Compiles what the first tokens would wait for.

        Args:
            heads: key heads.
            dtype: that of queries, keys and values.
        """
        pages = torch.zeros(1, heads, 1, self.cell, dtype=torch.uint8)
        key, value = (torch.zeros(1, heads, size, dtype=dtype) for size in self.sizes)
        self.store(key, value, pages, Slots(torch.zeros(1, dtype=torch.int64)))
        query = torch.zeros(1, heads * self.queries, self.sizes[0], dtype=dtype)
        batch = batch_of(torch.tensor([0, 1]), torch.tensor([1]), torch.zeros(1, 1, dtype=torch.int32))
        out = torch.empty(1, heads * self.queries, self.sizes[1], dtype=dtype)
        self.attend(query, pages, batch, out)
        self.attend(query, pages, replace(batch, lengths=batch.lengths[:0], runs=batch.all_runs()), out)

    def _split(self, pages: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and the values of pages, (pages, key heads, tokens of a page, bytes) each."""
        if pages is not self._pages:  # once, when the engine has made its cache
            tokens, (size, other) = pages.shape[2], self._bytes
            rows = pages.view(*pages.shape[:2], -1)
            keys, values = rows[..., : tokens * size], rows[..., tokens * size : tokens * (size + other)]
            self._views = keys.unflatten(2, (tokens, size)), values.unflatten(2, (tokens, other))
            self._pages = pages
        return self._views

    def _kernel_forms(self, device: torch.device, group: int) -> tuple[AttentionForm, AttentionForm] | None:
        """What a kernel for one token of each request needs of the codes; None where there is none for them."""
        if self.seed is None or not has(device, "attend_pages") or group > for_device(device).limits.queries:
            return None
        keys = self.codes.keys.attention_form(self.sizes[0], self.seed, device)
        values = self.codes.values.attention_form(self.sizes[1], self.seed, device)
        if keys is None or values is None or values.centers is not None or values.of_queries is not None:
            return None
        return keys, values

    def _attend_alone(self, query: Tensor, views: tuple[Tensor, Tensor], batch: Batch, out: Tensor) -> None:
        assert self._forms is not None and self.seed is not None
        keys, values = self._forms
        rows = query if batch.rows is None else query[batch.rows]
        found = for_device(query.device).attend_pages(
            keys.queries(rows.unflatten(1, (views[0].shape[1], -1))),
            (views[0], keys.code),
            (views[1], values.code, self.sizes[1]),
            batch.table,
            batch.lengths,
            self.seed,
            self.scale,
            keys.centers,
            self.window,
        )
        if batch.rows is None:
            out.copy_(found.flatten(1, 2))
        else:
            out[batch.rows] = found.flatten(1, 2).to(out.dtype)

    def _attend_run(self, query: Tensor, views: tuple[Tensor, Tensor], run: Run) -> Tensor:
        """Attention (tokens, query heads, entries of a value) of queries (tokens, query heads, entries of a key)."""
        tokens, first = len(query), 0
        if self.window is not None:
            first = max(0, run.length - tokens - self.window + 1)
        codes = self.codes.keys, self.codes.values
        keys, values = (
            unpack_heads(_in_order(view, run, first), size, code, self.seed, query.dtype)
            for view, size, code in zip(views, self.sizes, codes, strict=True)
        )
        grouped = query.unflatten(1, (keys.shape[0], -1)).permute(1, 2, 0, 3)  # (key heads, queries of one, tokens, …)
        group = grouped.shape[1]
        seen = keys.shape[1]
        whole = tokens == seen and (self.window is None or self.window >= tokens)
        mask = None if whole else _mask(tokens, seen, self.window, query.device)
        keys, values = (x[:, None].expand(-1, group, -1, -1) for x in (keys, values))
        found = F.scaled_dot_product_attention(grouped, keys, values, mask, is_causal=whole, scale=self.scale)
        return found.permute(2, 0, 1, 3).flatten(1, 2)


def _in_order(view: Tensor, run: Run, first: int) -> Tensor:
    """The vectors (key heads, tokens, bytes) of a request from its token `first` on."""
    size = view.shape[2]
    used = run.pages[first // size : -(-run.length // size)]
    rows = view[used].transpose(0, 1).flatten(1, 2)
    begin = first % size
    return rows[:, begin : begin + run.length - first]


def _mask(tokens: int, seen: int, window: int | None, device: torch.device) -> Tensor:
    """What the last `tokens` of `seen` tokens see, (tokens, seen) bool."""
    own = torch.arange(seen - tokens, seen, device=device)[:, None]
    other = torch.arange(seen, device=device)
    causal = other <= own
    return causal if window is None else causal & (other > own - window)
