"""Growing in place equals concatenation, whatever happens in between."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nestquant_cli.modules.packed_room import append

OPERATIONS = ("append", "append", "append", "crop", "slide", "reorder", "repeat", "one", "last", "copy")


def fresh(batch: int, tokens: int, seed: int) -> Tensor:
    shape = batch, 3, tokens, 5
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def change(x: Tensor, name: str, size: int) -> Tensor:
    """What transformers does to a cache."""
    if name == "crop":
        return x[..., :-size, :] if x.shape[2] > size else x
    if name == "slide":
        return x[:, :, -size:]
    if name == "reorder":
        return x.index_select(0, torch.arange(x.shape[0] - 1, -1, -1))
    if name == "repeat" and x.shape[0] < 9:
        return x.repeat_interleave(2, dim=0)
    if name in ("one", "last"):
        return x[:1] if name == "one" else x[-1:]
    return x.clone() if name == "copy" else x


@given(st.lists(st.tuples(st.sampled_from(OPERATIONS), st.integers(1, 40)), max_size=14), st.integers(0, 30))
def test_any_sequence_equals_concatenation(operations: list[tuple[str, int]], tokens: int) -> None:
    grown = expected = fresh(2, tokens, 0)
    for seed, (name, size) in enumerate(operations, start=1):
        if name == "append":
            new = fresh(grown.shape[0], size, seed)
            grown, expected = append(grown, new), torch.cat([expected, new], dim=2)
        else:
            grown, expected = change(grown, name, size), change(expected, name, size)
        assert torch.equal(grown, expected)


def test_most_tokens_are_not_copied() -> None:
    grown = append(fresh(1, 3200, 0), fresh(1, 1, 1))
    places = set()
    for seed in range(200):
        grown = append(grown, fresh(1, 1, seed))
        places.add(grown.data_ptr())
    assert len(places) == 1
    assert grown.untyped_storage().nbytes() <= 3 * 5 * 3201 * 17 / 16


def test_tensors_of_inference_mode_are_not_written_to_outside() -> None:
    with torch.inference_mode():
        inside = append(fresh(1, 4, 0), fresh(1, 1, 1))
    outside = append(inside, fresh(1, 1, 2))
    assert torch.equal(outside[:, :, :5], inside) and not outside.is_inference()
    with torch.inference_mode():
        assert append(outside, fresh(1, 1, 3)).data_ptr() == outside.data_ptr()
