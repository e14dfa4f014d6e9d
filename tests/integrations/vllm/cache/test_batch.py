"""What all layers share of a step: the requests sorted out, and where new tokens go."""

import pytest
import torch

from nestquant_cli.integrations.vllm.cache.batch import Slots, batch_of


@pytest.mark.parametrize("size", [16, 128])
def test_where_tokens_go(size: int) -> None:
    slots = Slots(torch.tensor([5, 2 * size, 3 * size - 1], dtype=torch.int32))
    kept, page, place = slots.places(size)
    assert kept is None and page.tolist() == [0, 2, 2] and place.tolist() == [5, 0, size - 1]
    assert page.dtype == place.dtype == torch.int64


def test_tokens_that_go_nowhere() -> None:
    kept, page, place = Slots(torch.tensor([-1, 17, -1, 3])).places(16)
    assert kept is not None and kept.tolist() == [False, True, False, True]
    assert page.tolist() == [1, 0] and place.tolist() == [1, 3]


def test_it_is_worked_out_once_for_pages_of_a_size() -> None:
    slots = Slots(torch.tensor([40]))
    assert slots.places(16) is slots.places(16)
    assert slots.places(32).page.tolist() == [1] and slots.places(16).page.tolist() == [2]


@pytest.mark.parametrize("starts", [[0, 1, 2], [0, 3, 4]])
def test_the_requests_of_a_step_have_its_slots(starts: list[int]) -> None:
    slots = Slots(torch.arange(starts[-1]))
    batch = batch_of(torch.tensor(starts), torch.tensor([9, 5]), torch.zeros(2, 1, dtype=torch.int32), slots)
    assert batch.slots is slots and batch.tokens == starts[-1]
