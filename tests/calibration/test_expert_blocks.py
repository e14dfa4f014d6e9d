import gc

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nestquant_cli.calibration.expert_blocks import blocks_of, expert_bytes
from nestquant_cli.calibration.expert_collector import ExpertCollector
from nestquant_cli.calibration.input_groups import ExpertInput
from tests.families import gaussian


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 9)), max_size=4), st.integers(0, 1 << 20))
def test_blocks_have_every_expert_once_and_fit(inputs: list[tuple[int, int]], budget: int) -> None:
    blocks = blocks_of(inputs, budget)
    for number, (_, experts) in enumerate(inputs):
        assert [expert for block in blocks for expert in block[number]] == list(range(experts))
    for block in blocks:
        sizes = [expert_bytes(*shared) for shared in inputs]
        total = sum(size * len(experts) for size, experts in zip(sizes, block, strict=True))
        assert total <= budget or sum(map(len, block)) == 1


def held() -> int:
    """Bytes of all tensors in memory."""
    gc.collect()
    storages = [item.untyped_storage() for item in gc.get_objects() if type(item) is torch.Tensor]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


@pytest.mark.parametrize("features", [64, 300])
def test_blocks_take_the_memory_that_is_counted(features: int) -> None:
    names = tuple(f"up.{expert}" for expert in range(16))
    collector = ExpertCollector(ExpertInput((names,)), features, 8, 0, torch.device("cpu"), 0)
    before = held()
    collector.open(range(16))
    for expert in range(16):
        for window in range(3):  # more tokens than wait together
            collector.see(expert, gaussian(700, features, seed=window))
    counted = 16 * expert_bytes(features, 16)
    assert 0.95 * counted < held() - before < 1.05 * counted
