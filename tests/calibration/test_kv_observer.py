from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from nestquant_cli.calibration.current_window import in_window
from nestquant_cli.calibration.kv_observer import KVObserver
from nestquant_cli.models.structure import open_decoder
from nestquant_cli.modules.cache_hooks import give_cache
from tests.families import CONFIGS, gaussian, make_model, random_ids


@pytest.fixture
def observer() -> KVObserver:
    observer = KVObserver(make_model("llama").config, share=0.25)
    observer.watching = True
    return observer


def test_the_observer_hands_back_what_it_is_given_and_keeps_a_share(observer: KVObserver) -> None:
    keys, values = gaussian(1, 2, 40, 16), gaussian(1, 2, 40, 8, seed=1)
    observer.reseed(0)
    for number in range(2):
        with in_window(number):
            got = observer.update(keys, values, 0)
        assert got[0] is keys and got[1] is values
    assert observer.get_seq_length() == 0
    taken = observer.take()
    assert taken is not None
    assert taken[0].shape == (2, 20, 16) and taken[1].shape == (2, 20, 8)
    for head in range(2):
        rows = {tuple(row) for row in keys[0, head].tolist()}
        assert {tuple(row) for row in taken[0][head].tolist()} <= rows
    assert observer.take() is None


def test_the_sample_is_a_function_of_the_seed(observer: KVObserver) -> None:
    x = gaussian(1, 2, 40, 16)

    def sample(seed: int) -> torch.Tensor:
        observer.reseed(seed)
        observer.update(x, x, 0)
        taken = observer.take()
        assert taken is not None
        return taken[0]

    first = sample(0)
    assert not torch.equal(sample(1), first)
    assert torch.equal(sample(0), first)


def watched_queries(model: Any, ids: Tensor) -> list[Tensor]:
    """What an observer of each layer counts on one window."""
    found = []
    for index, layer in enumerate(open_decoder(model).layers):
        observer = KVObserver(model.config, 0.5, queries=True)
        observer.watching = True
        handles = give_cache([layer], observer)
        with torch.inference_mode():
            model(ids, use_cache=False)
        for handle in handles:
            handle.remove()
        taken = observer.take()
        assert taken is not None and taken.queries.shape[0] == 1, index
        found.append(taken.queries[0])
    return found


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_the_queries_that_meet_a_key_are_those_of_its_group_behind_the_position_embedding(
    family: str,
) -> None:
    """Against what transformers gives to its function for attention; eager attention may be another one behind it."""
    expected: list[Tensor] = []

    def recorded(module: Any, query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Any:
        energy = query[0].double().square().sum(1)
        expected.append(energy.view(key.shape[1], -1, key.shape[3]).sum(1))
        return sdpa_attention_forward(module, query, key, *args, **kwargs | {"softcap": None})

    AttentionInterface.register("recorded", recorded)
    AttentionMaskInterface.register("recorded", sdpa_mask)
    model, ids = make_model(family), random_ids(1, 40)
    model.set_attn_implementation("recorded")
    with torch.inference_mode():
        model(ids, use_cache=False)
    for attention in ("eager",) if family == "gemma2" else ("sdpa", "eager"):  # scores of Gemma 2 are soft-capped
        model.set_attn_implementation(attention)
        found = watched_queries(model, ids)
        assert len(found) == len(expected)
        for mine, theirs in list(zip(found, expected, strict=True))[: 1 if attention == "eager" else None]:
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_queries_of_each_window_are_counted_by_themselves(observer: KVObserver) -> None:
    keys, query = gaussian(1, 2, 40, 16), gaussian(1, 4, 40, 16, seed=1)
    watching = KVObserver(make_model("llama").config, 0.25, queries=True)
    for each, factor in ((observer, 0), (watching, 1)):
        each.watching = True
        for number in (1, 0):
            with in_window(number):
                seen, _ = each.update(keys, keys, 0)
                F.scaled_dot_product_attention((1 + number) * query, seen, keys, enable_gqa=True)
        taken = each.take()
        assert taken is not None
        once = query[0].double().square().sum(1).view(2, 2, 16).sum(1)
        torch.testing.assert_close(taken.queries, factor * torch.stack([once, 4 * once]))


def test_an_observer_that_does_not_watch_keeps_nothing(observer: KVObserver) -> None:
    observer.watching = False
    observer.update(gaussian(1, 1, 4, 8), gaussian(1, 1, 4, 8), 0)
    assert observer.take() is None
