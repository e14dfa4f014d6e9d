"""Growing in place equals concatenation, whatever happens in between and whoever else holds the same tokens."""

import copy
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nestquant_cli.modules.packed_room import append, last

OPERATIONS = ("append",) * 6 + ("crop", "last", "slide", "reorder", "repeat", "one", "clone", "deepcopy", "pickle")


def fresh(batch: int, tokens: int, seed: int) -> Tensor:
    shape = batch, 3, tokens, 5
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def change(x: Tensor, name: str, size: int) -> Tensor:
    """What transformers and others do to a cache."""
    if name == "crop":
        return x[..., :-size, :] if x.shape[2] > size else x
    if name == "last":
        return last(x, size)
    if name == "slide":
        return x[:, :, -size:]
    if name == "reorder":
        return x.index_select(0, torch.arange(x.shape[0] - 1, -1, -1))
    if name == "repeat" and x.shape[0] < 9:
        return x.repeat_interleave(2, dim=0)
    if name == "one":
        return x[:1]
    if name == "deepcopy":
        return copy.deepcopy(x)
    if name == "pickle":
        return pickle.loads(pickle.dumps(x))
    return x.clone() if name == "clone" else x


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.sampled_from(OPERATIONS), st.integers(1, 40)), max_size=14),
    st.integers(0, 30),
)
def test_nothing_that_was_ever_made_changes(operations: list[tuple[int, str, int]], tokens: int) -> None:
    """Each operation starts from any of the tensors so far, and all of them stay as they were."""
    made = [fresh(2, tokens, 0)]
    expected = [made[0].clone()]
    for seed, (which, name, size) in enumerate(operations, start=1):
        which %= len(made)
        if name == "append":
            new = fresh(made[which].shape[0], size, seed)
            made.append(append(made[which], new))
            expected.append(torch.cat([expected[which], new], dim=2))
        else:
            made.append(change(made[which], name, size))
            expected.append(change(expected[which], name, size).clone())
        for one, other in zip(made, expected, strict=True):
            assert torch.equal(one, other)


def test_of_threads_that_go_on_from_one_tensor_each_sees_its_own_tokens() -> None:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            for seed in range(100):
                stored = append(fresh(1, 4, seed), fresh(1, 1, seed))
                news = [fresh(1, 2, 1000 + 4 * seed + number) for number in range(4)]
                for new, grown in zip(news, pool.map(append, [stored] * 4, news), strict=True):
                    assert torch.equal(grown[:, :, 5:], new)
    finally:
        sys.setswitchinterval(before)


def test_most_tokens_are_not_copied() -> None:
    grown = append(fresh(1, 3200, 0), fresh(1, 1, 1))
    places = set()
    for seed in range(200):
        grown = append(grown, fresh(1, 1, seed))
        places.add(grown.data_ptr())
    assert len(places) == 1
    assert grown.untyped_storage().nbytes() <= 3 * 5 * 3201 * 17 / 16


def test_the_last_tokens_grow_in_place() -> None:
    """As a sliding window needs it: a copy of the window once in as many tokens as there is room for."""
    window, places = append(fresh(1, 320, 0), fresh(1, 1, 1)), set()
    for seed in range(100):
        window = last(append(window, fresh(1, 1, seed)), 320)
        places.add(window.untyped_storage().data_ptr())
    assert window.shape[2] == 320 and len(places) <= 1 + 100 // (320 // 16)


def test_tensors_of_inference_mode_are_not_written_to_outside() -> None:
    with torch.inference_mode():
        inside = append(fresh(1, 4, 0), fresh(1, 1, 1))
    outside = append(inside, fresh(1, 1, 2))
    assert torch.equal(outside[:, :, :5], inside) and not outside.is_inference()
    with torch.inference_mode():
        assert append(outside, fresh(1, 1, 3)).data_ptr() == outside.data_ptr()
