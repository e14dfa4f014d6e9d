"""Keys and values in pages: what each token sees is what it sees with nestquant's cache in transformers."""

from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nestquant_cli.codecs.factored import FactoredCode
from nestquant_cli.codecs.nested.centered import CenteredCode
from nestquant_cli.codecs.nested.code import ScaledCode
from nestquant_cli.codecs.nested.fit import fit_scales
from nestquant_cli.codecs.registry import fit_vectors, shape_of
from nestquant_cli.codecs.vectors import VectorCode
from nestquant_cli.e8.shape import shape_for_bits
from nestquant_cli.integrations.vllm.cache.batch import Slots, batch_of
from nestquant_cli.integrations.vllm.cache.paged import PagedLayer
from nestquant_cli.modules.cache_codes import CacheCodes
from nestquant_cli.modules.packed_layers import PackedLayer, PackedSlidingLayer
from nestquant_cli.rotation.seeds import bytes_of
from tests.families import gaussian, relative_error

HEADS, GROUP, SEED, SCALE = 2, 3, 1, 0.2
SIZES = 32, 32


def codes(centered: bool, bits: tuple[float, float] = (4, 4), factored: bool = False) -> CacheCodes:
    """Codes of keys and values of so many bits each."""
    keys, values = (fit_scales(gaussian(2048, 8), shape_for_bits(each)) for each in bits)
    centers = tuple(bytes(row) for row in keys.pack(2 * gaussian(HEADS, SIZES[0], seed=7)).tolist())
    code: VectorCode = CenteredCode(keys, centers) if centered else keys
    factors = tuple(bytes_of(torch.exp2(row).double().numpy()) for row in gaussian(HEADS, SIZES[0], seed=8))
    return CacheCodes(FactoredCode(code, factors) if factored else code, values)


@dataclass
class Request:
    """A request with the cache that transformers would give it."""

    cache: PackedLayer
    pages: list[int] = field(default_factory=list)
    length: int = 0


class Engine:
    """Hands out pages as a serving engine does, and feeds each request's tokens to a cache of transformers, too."""

    def __init__(self, layer: PagedLayer, page_tokens: int, requests: int, spare: int, dtype: torch.dtype) -> None:
        window = layer.window
        self.layer, self.size, self.dtype = layer, page_tokens, dtype
        self.pages = torch.full((400, HEADS, page_tokens, layer.cell + spare), 255, dtype=torch.uint8)
        self.free = torch.randperm(400, generator=torch.Generator().manual_seed(0)).tolist()
        self.requests = [
            Request(
                PackedLayer(layer.codes, layer.seed)
                if window is None
                else PackedSlidingLayer(layer.codes, layer.seed, window)
            )
            for _ in range(requests)
        ]
        self.steps = 0

    def step(self, counts: list[int]) -> tuple[Tensor, Tensor]:
        """One step with so many new tokens of each request: what is seen in pages, and in transformers."""
        self.steps += 1
        tokens = sum(counts)
        query, key, value = (
            gaussian(tokens, heads, SIZES[0], seed=3 * self.steps + i).to(self.dtype)
            for i, heads in enumerate((HEADS * GROUP, HEADS, HEADS))
        )
        slots = []
        for request, count in zip(self.requests, counts, strict=True):
            for place in range(request.length, request.length + count):
                if place % self.size == 0:
                    request.pages.append(self.free.pop())
                slots.append(request.pages[place // self.size] * self.size + place % self.size)
            request.length += count
        active = [i for i, count in enumerate(counts) if count]
        longest = max(len(self.requests[i].pages) for i in active)
        table = torch.tensor([self.requests[i].pages + [0] * (longest - len(self.requests[i].pages)) for i in active])
        starts = torch.tensor([0] + [counts[i] for i in active]).cumsum(0)
        batch = batch_of(starts, torch.tensor([self.requests[i].length for i in active]), table)
        out = torch.full_like(query, torch.nan)
        self.layer.store(key, value, self.pages, Slots(torch.tensor(slots)))
        self.layer.attend(query, self.pages, batch, out)
        parts = zip(active, *(x.split([counts[i] for i in active]) for x in (query, key, value)), strict=True)
        return out, torch.cat([self._expected(self.requests[i], *x) for i, *x in parts])

    def _expected(self, request: Request, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        new = len(query)
        keys, values = request.cache.update(*(x.transpose(0, 1)[None] for x in (key, value)))
        seen, window = keys.shape[2], self.layer.window
        own = torch.arange(seen - new, seen)[:, None]
        mask = torch.arange(seen) <= own
        if window is not None:
            mask &= torch.arange(seen) > own - window
        found = F.scaled_dot_product_attention(
            query.transpose(0, 1)[None], keys, values, attn_mask=mask[None, None], scale=SCALE, enable_gqa=True
        )
        return found[0].transpose(0, 1)


@settings(deadline=None, max_examples=15)
@given(
    steps=st.lists(st.lists(st.sampled_from([0, 1, 1, 1, 2, 17, 40]), min_size=3, max_size=3), min_size=1, max_size=6),
    page_tokens=st.sampled_from([16, 32, 5]),
    window=st.sampled_from([None, 4, 30]),
    seed=st.sampled_from([SEED, None]),
    centered=st.booleans(),
    bits=st.sampled_from([(4, 4), (4.5, 3.5), (2, 8), (6.125, 4)]),
    factored=st.booleans(),
)
def test_every_step_is_as_in_transformers(
    steps: list[list[int]],
    page_tokens: int,
    window: int | None,
    seed: int | None,
    centered: bool,
    bits: tuple[float, float],
    factored: bool,
) -> None:
    """Prompts, chunks of them and single tokens, of several requests at once."""
    packed = PagedLayer(codes(centered, bits, factored), seed, SIZES, SCALE, window, GROUP)
    engine = Engine(packed, page_tokens, 3, 4, torch.float32)
    for counts in steps:
        if any(counts):
            found, expected = engine.step(counts)
            assert relative_error(found, expected) < 1e-5


@pytest.mark.parametrize("bits", [3, 4])
def test_integers(bits: int) -> None:
    """A code that no kernel attends to is decoded for every token."""
    code = fit_vectors(gaussian(256, SIZES[0]), shape_of("integer", bits, None, "kv"), 0)
    engine = Engine(PagedLayer(CacheCodes(code, code), SEED, SIZES, SCALE, 30, GROUP), 16, 2, 0, torch.float32)
    for counts in ([50, 3], [1, 1], [1, 40], [1, 1]):
        found, expected = engine.step(counts)
        assert relative_error(found, expected) < 1e-5


def test_in_bfloat16() -> None:
    engine = Engine(PagedLayer(codes(True), SEED, SIZES, SCALE, None, GROUP), 16, 2, 0, torch.bfloat16)
    for counts in ([50, 3], [1, 1], [1, 40], [1, 1]):
        found, expected = engine.step(counts)
        assert found.dtype == torch.bfloat16 and relative_error(found, expected) < 0.01


@pytest.mark.parametrize("factored", [False, True])
def test_one_token_of_each_request_is_seen_without_decoding(factored: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from nestquant_cli.integrations.vllm.cache import paged

    layer = PagedLayer(codes(True, factored=factored), SEED, SIZES, SCALE, None, GROUP)
    engine = Engine(layer, 16, 2, 0, torch.float32)
    engine.step([50, 3])
    monkeypatch.setattr(paged, "unpack_heads", None)
    found, expected = engine.step([1, 1])
    assert relative_error(found, expected) < 1e-5


def test_a_shared_prefix_is_the_same_for_all() -> None:
    """A request on pages that another one has written sees what it would have written itself."""
    layer = PagedLayer(codes(True), SEED, SIZES, SCALE, None, GROUP)
    engine = Engine(layer, 16, 1, 0, torch.float32)
    engine.step([32])
    (request,), query = engine.requests, gaussian(5, HEADS * GROUP, SIZES[0], seed=50)
    key, value = (gaussian(5, HEADS, SIZES[0], seed=seed) for seed in (51, 52))
    outs = []
    for own in (7, 9):  # a page of its own behind two that are shared
        table = torch.tensor([[*request.pages, own]])
        layer.store(key, value, engine.pages, Slots(own * 16 + torch.arange(5)))
        outs.append(torch.empty_like(query))
        layer.attend(query, engine.pages, batch_of(torch.tensor([0, 5]), torch.tensor([37]), table), outs[-1])
    assert torch.equal(*outs)


def test_tokens_without_a_slot_are_not_stored() -> None:
    layer = PagedLayer(codes(False), SEED, SIZES, SCALE, None, GROUP)
    pages = torch.zeros(2, HEADS, 16, layer.cell, dtype=torch.uint8)
    states = gaussian(3, HEADS, SIZES[0])
    layer.store(states, states, pages, Slots(torch.tensor([-1, 17, -1])))
    assert not pages[0].any() and int((pages[1] != 0).any(-1).sum()) >= HEADS


def test_a_layer_can_be_warmed_up() -> None:
    scaled = ScaledCode(shape_for_bits(4).with_multipliers((3, 4, 5, 6, 9)), 0.9 / 13 / 2)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)  # vLLM sets that of the model while it loads
    try:
        PagedLayer(CacheCodes(scaled, scaled), SEED, SIZES, SCALE, None, GROUP).warm_up(HEADS, torch.bfloat16)
    finally:
        torch.set_default_dtype(before)
