"""Undecoded keys and values: generation is the same as with decoded ones, in every family and way of generating."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nestquant_cli.codecs.factored import FactoredCode
from nestquant_cli.codecs.nested.centered import CenteredCode
from nestquant_cli.codecs.nested.code import ScaledCode
from nestquant_cli.e8.shape import shape_for_bits
from nestquant_cli.modules import packed_attention
from nestquant_cli.modules.cache import PackedCache
from nestquant_cli.modules.cache_codes import CacheCodes, pack_heads, unpack_heads
from nestquant_cli.modules.packed_attention import PackedStates
from nestquant_cli.modules.unrounded import Unrounded
from nestquant_cli.rotation.seeds import bytes_of
from tests.families import CONFIGS, WINDOW, gaussian, make_model, random_ids, relative_error

SEED = 1
CODE = ScaledCode(shape_for_bits(4).with_multipliers((3, 4, 5, 6, 9)), 0.9 / 13 / 2)
SOFTCAPPED = ("gemma2",)  # no attention of torch's: keys and values are decoded
SHORT = WINDOW // 2


def make_cache(model: Any) -> PackedCache:
    config = model.config.get_text_config(decoder=True)
    return PackedCache(config, [CacheCodes(CODE, CODE)] * config.num_hidden_layers, SEED)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether attention worked on packed bytes, a call each."""
    made: list[bool] = []
    original = packed_attention._attention

    def recorded(*args: Any, **kwargs: Any) -> Tensor | None:
        result = original(*args, **kwargs)
        made.append(result is not None)
        return result

    monkeypatch.setattr(packed_attention, "_attention", recorded)
    return made


def in_both_ways(monkeypatch: pytest.MonkeyPatch, run: Callable[[], Any]) -> tuple[Any, Any]:
    """Its results with packed and with decoded keys and values."""
    packed = run()
    with monkeypatch.context() as patch:
        patch.setattr(packed_attention, "_attention", lambda *args, **kwargs: None)
        return packed, run()


def step_by_step(model: Any, padded: bool) -> Tensor:
    """Logits of a prompt of two sequences and of twenty more tokens, one by one."""
    cache, ids = make_cache(model), random_ids(2, SHORT + 20)
    mask = torch.ones_like(ids)
    if padded:
        mask[0, :3] = 0
    parts = [ids[:, :SHORT], *ids[:, SHORT:].split(1, dim=1)]
    found, seen = [], 0
    with torch.no_grad():
        for part in parts:
            seen += part.shape[1]
            found.append(model(part, attention_mask=mask[:, :seen], past_key_values=cache).logits)
    return torch.cat(found, dim=1)


@pytest.mark.parametrize("family", sorted(CONFIGS))
@pytest.mark.parametrize("padded", [False, True])
def test_steps_equal_those_with_decoded_states(
    family: str, padded: bool, calls: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(family)
    found, expected = in_both_ways(monkeypatch, lambda: step_by_step(model, padded))
    assert relative_error(found, expected) < 1e-5
    assert calls == ([] if family in SOFTCAPPED else [True] * (20 * model.config.num_hidden_layers))


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3", "gemma2"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_beams": 3},
        {"num_return_sequences": 2, "num_beams": 2},
        {"prompt_lookup_num_tokens": 3},
        {"prefill_chunk_size": 5},
    ],
)
def test_generation_equals_that_with_decoded_states(
    family: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = make_model(family)
    ids = random_ids(1, 4).repeat(1 if "prompt_lookup_num_tokens" in settings else 2, 4)  # looks up what it repeats
    fixed = {"max_new_tokens": 16, "min_new_tokens": 16, "do_sample": False}

    def run() -> Tensor:
        result: Tensor = model.generate(ids, past_key_values=make_cache(model), **fixed, **settings)
        return result

    found, expected = in_both_ways(monkeypatch, run)
    assert torch.equal(found, expected)


def test_in_eager_attention_and_in_bfloat16(calls: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = make_model("llama").to(torch.bfloat16)
    found, expected = in_both_ways(monkeypatch, lambda: step_by_step(model, False))
    assert found.dtype == torch.bfloat16 and relative_error(found, expected) < 0.05
    calls.clear()
    model.set_attn_implementation("eager")
    assert relative_error(step_by_step(model, False), found) < 0.05
    assert calls == []


def states(heads: int = 2, tokens: int = 70, size: int = 16, seed: int = 0) -> PackedStates:
    packed = pack_heads(gaussian(2, heads, tokens, size, seed=seed), CODE, SEED)
    return PackedStates(packed, size, CODE, SEED, torch.float32)


@pytest.mark.parametrize("groups", [1, 2, 5])
@pytest.mark.parametrize("size", [16, 64, 80, 128])
@pytest.mark.parametrize("kind", ["none", "shared", "per query", "added"])
def test_grouped_queries_and_masks(groups: int, size: int, kind: str, calls: list[bool]) -> None:
    key, value = states(size=size), states(size=size, seed=1)
    query = gaussian(2, 2 * groups, 1, size, seed=2)
    mask = {
        "none": None,
        "shared": gaussian(2, 1, 1, 70, seed=3) < 1,
        "per query": gaussian(2, 2 * groups, 1, 70, seed=3) < 1,
        "added": gaussian(1, 1, 1, 70, seed=3),
    }[kind]
    found = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
    assert calls == [True]
    expected = F.scaled_dot_product_attention(query, key.decoded(), value.decoded(), mask, enable_gqa=True)
    assert relative_error(found, expected) < 1e-5


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("size", [16, 80])
@pytest.mark.parametrize("centered", [False, True])
def test_queries_meet_keys_with_factors(groups: int, size: int, centered: bool, calls: list[bool]) -> None:
    centers = tuple(bytes(row) for row in CODE.pack(2 * gaussian(2, size, seed=6)).tolist())
    factors = tuple(bytes_of(torch.exp2(row).double().numpy()) for row in gaussian(2, size, seed=7))
    code = FactoredCode(CenteredCode(CODE, centers) if centered else CODE, factors)
    packed = pack_heads(gaussian(2, 2, 70, size) + gaussian(2, 1, size, seed=5), code, SEED)
    key, value = PackedStates(packed, size, code, SEED, torch.float32), states(size=size, seed=1)
    query = gaussian(2, 2 * groups, 1, size, seed=2)
    found = F.scaled_dot_product_attention(query, key, value, enable_gqa=True)
    assert calls == [True]
    expected = F.scaled_dot_product_attention(query, key.decoded(), value.decoded(), enable_gqa=True)
    assert relative_error(found, expected) < 1e-5


@pytest.mark.parametrize("unrounded", [Unrounded(), Unrounded(6, 2)])
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt_neox"])
def test_steps_with_factors_of_keys(
    family: str, unrounded: Unrounded, calls: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Token by token, with and without decoding, and without a cache: the same tokens see the same keys."""
    model: Any = make_model(family)
    config = model.config.get_text_config(decoder=True)
    heads, size = getattr(config, "num_key_value_heads", None) or config.num_attention_heads, 16
    factors = tuple(bytes_of(torch.exp2(row).double().numpy()) for row in gaussian(heads, size, seed=7))
    codes = [CacheCodes(FactoredCode(CODE, factors), CODE)] * config.num_hidden_layers
    monkeypatch.setattr(
        "tests.modules.test_packed_attention.make_cache", lambda _: PackedCache(config, codes, SEED, unrounded)
    )
    found, expected = in_both_ways(monkeypatch, lambda: step_by_step(model, False))
    assert relative_error(found, expected) < 1e-5 and any(calls)
    plain = PackedCache(config, [CacheCodes(CODE, CODE)] * config.num_hidden_layers, SEED, unrounded)
    with torch.no_grad():
        assert relative_error(model(random_ids(2, SHORT), past_key_values=plain).logits, found[:, :SHORT]) > 1e-4


@pytest.mark.parametrize(
    "unusual",
    [
        {"is_causal": True},
        {"dropout_p": 1e-9},
        {"attn_mask": gaussian(1, 70)},
        {"query": gaussian(1, 2, 1, 16)},
        {"query": gaussian(2, 2, 65, 16)},
        {"query": gaussian(2, 2, 1, 16).requires_grad_()},
        {"key": gaussian(2, 2, 70, 16)},
    ],
    ids=["causal", "dropout", "flat mask", "broadcast query", "many queries", "gradient", "decoded keys"],
)
def test_the_unusual_is_left_to_torch(unusual: dict[str, Any], calls: list[bool]) -> None:
    key, value = states(), states(seed=1)
    arguments = {"query": gaussian(2, 2, 1, 16, seed=2), "key": key, "value": value} | unusual
    found = F.scaled_dot_product_attention(**arguments)
    decoded = {"key": key.decoded(), "value": value.decoded()}
    assert torch.equal(found, F.scaled_dot_product_attention(**arguments | decoded | unusual))
    assert calls == [False]


def test_autocast_is_left_to_torch(calls: list[bool]) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = F.scaled_dot_product_attention(gaussian(2, 2, 1, 16), states(), states())
    assert found.dtype == torch.bfloat16 and calls == [False]


def test_anything_else_sees_decoded_values() -> None:
    lazy = states()
    expected = unpack_heads(lazy.packed, 16, CODE, SEED, torch.float32)
    assert lazy.shape == (2, 2, 70, 16) and lazy.dtype == torch.float32 and lazy.size(2) == 70 and len(lazy) == 2
    assert lazy._decoded is None  # none of this needs them
    uses: list[Callable[[Tensor], Any]] = [
        lambda x: x + 1,
        lambda x: torch.cat([x, x], dim=2),
        lambda x: x[:, :, None].expand(2, 2, 3, 70, 16).reshape(2, 6, 70, 16),
        lambda x: x.transpose(2, 3).contiguous(),
        lambda x: torch.einsum("bhtd->bhd", x),
        lambda x: torch.matmul(input=torch.ones(1, 70), other=x),
        copy.deepcopy,
        lambda x: pickle.loads(pickle.dumps(x)),
        lambda x: torch.from_numpy(x.numpy()),
        lambda x: x.to(torch.bfloat16),
    ]
    for use in uses:
        found = use(lazy)
        assert type(found) is Tensor and torch.equal(found, use(expected))
    assert repr(lazy) == repr(expected)
    with torch.inference_mode():
        assert torch.equal(states() * 2, expected * 2)
