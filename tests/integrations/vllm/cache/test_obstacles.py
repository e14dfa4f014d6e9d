"""What cannot be packed is said in words, and a rank of tensor parallelism has the centers of its own heads."""

from types import SimpleNamespace
from typing import Any

import pytest

from nestquant_cli.codecs.factored import FactoredCode
from nestquant_cli.codecs.nested.centered import CenteredCode
from nestquant_cli.codecs.nested.code import ScaledCode
from nestquant_cli.codecs.vectors import VectorCode
from nestquant_cli.e8.shape import shape_for_bits
from nestquant_cli.integrations.vllm.cache import unusable
from nestquant_cli.integrations.vllm.cache.obstacles import codes_of_rank, obstacle
from nestquant_cli.modules.cache_codes import CacheCodes
from nestquant_cli.modules.unrounded import Unrounded
from tests.families import gaussian

SCALED = ScaledCode(shape_for_bits(4).with_multipliers((3, 4, 5, 6, 9)), 0.9 / 13 / 2)
HEADS, SIZES = 4, (16, 16)
CENTERS = tuple(bytes(row) for row in SCALED.pack(gaussian(HEADS, SIZES[0])).tolist())
PLAIN, CENTERED = CacheCodes(SCALED, SCALED), CacheCodes(CenteredCode(SCALED, CENTERS), SCALED)


def layer(**changes: Any) -> SimpleNamespace:
    """What an ordinary attention layer of vLLM has."""
    impl = {"sinks": None, "alibi_slopes": None, "logits_soft_cap": 0}
    plain = {
        "kv_sharing_target_layer_name": None, "attn_type": "decoder", "kv_cache_dtype": "auto", "use_mm_prefix": False,
        "head_size": 64, "head_size_v": 64,
    }  # fmt: skip
    impl |= {name: changes.pop(name) for name in tuple(changes) if name in impl}
    return SimpleNamespace(impl=SimpleNamespace(**impl), **plain | changes)


def test_nothing_stands_against_an_ordinary_layer() -> None:
    assert obstacle(layer(), PLAIN) is None


@pytest.mark.parametrize(
    "changes, word",
    [
        ({"kv_sharing_target_layer_name": "a"}, "another layer"),
        ({"attn_type": "encoder_decoder"}, "decoder"),
        ({"kv_cache_dtype": "fp8"}, "--kv-cache-dtype fp8"),
        ({"sinks": object()}, "sinks"),
        ({"alibi_slopes": object()}, "ALiBi"),
        ({"logits_soft_cap": 30.0}, "soft-capped"),
        ({"use_mm_prefix": True}, "both directions"),
        ({"head_size_v": 20}, "multiple of 8"),
    ],
)
def test_an_obstacle_is_named(changes: dict[str, Any], word: str) -> None:
    assert word in (obstacle(layer(**changes), PLAIN) or "")
    assert "no codes" in (obstacle(layer(**changes), None) or "")


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_a_rank_has_the_centers_of_its_heads(ranks: int) -> None:
    """Ranks beyond the number of heads have the same ones, neighbors first."""
    heads = max(1, HEADS // ranks)
    for rank in range(ranks):
        found = codes_of_rank(CENTERED, heads, rank, ranks, SIZES)
        first = rank * HEADS // ranks
        keys = None if found is None else found.keys
        assert isinstance(keys, CenteredCode) and keys.packed == CENTERS[first : first + heads]
    assert codes_of_rank(PLAIN, heads, ranks - 1, ranks, SIZES) == PLAIN


@pytest.mark.parametrize("ranks", [1, 2, 8])
@pytest.mark.parametrize("inner", [SCALED, CENTERED.keys])
def test_a_rank_has_the_factors_of_its_heads(ranks: int, inner: VectorCode) -> None:
    factors = tuple(bytes([45 + head] * SIZES[0]) for head in range(HEADS))
    heads = max(1, HEADS // ranks)
    for rank in range(ranks):
        found = codes_of_rank(CacheCodes(FactoredCode(inner, factors), SCALED), heads, rank, ranks, SIZES)
        first = rank * HEADS // ranks
        own = inner.of_heads(first, first + heads)
        assert found is not None and found.keys == FactoredCode(own, factors[first : first + heads])
    assert codes_of_rank(CacheCodes(FactoredCode(inner, factors), SCALED), 3, 0, 1, SIZES) is None


@pytest.mark.parametrize("heads, ranks, size", [(3, 1, 16), (2, 3, 16), (2, 2, 24), (1, 6, 16)])
def test_centers_of_other_heads_are_none_of_a_rank(heads: int, ranks: int, size: int) -> None:
    assert codes_of_rank(CENTERED, heads, 0, ranks, (size, 16)) is None


def test_only_versions_with_an_adapter_have_a_packed_cache() -> None:
    assert "--kv-window" in (unusable("0.32.0", "cpu", Unrounded(4)) or "")
    assert unusable("0.32.0", "cpu") is None and unusable("0.32.1rc1", "cpu") is None
    assert "0.33.0" in (unusable("0.33.0", "cpu") or "") and "cuda" in (unusable("0.32.0", "cuda") or "")
