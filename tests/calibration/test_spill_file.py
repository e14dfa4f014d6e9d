from pathlib import Path

import pytest
import torch

from nestquant_cli.calibration.spill_file import KeptTensors
from tests.families import gaussian


@pytest.mark.parametrize("budget", [0, 100, 1 << 20])
def test_tensors_of_any_shape_are_kept_and_their_room_is_used_again(budget: int, tmp_path: Path) -> None:
    store = KeptTensors(budget, tmp_path)
    tensors = [
        gaussian(2, 3),
        torch.arange(7),
        gaussian(4, 5).bfloat16().t(),
        torch.tensor(True),
        gaussian(2, 3, seed=1),
    ]
    kept = [store.keep(tensor) for tensor in tensors]
    assert all(torch.equal(one.get(), tensor) for one, tensor in zip(kept, tensors, strict=True))
    end = store._end
    del kept[0]
    kept.append(store.keep(gaussian(2, 3, seed=2)))
    assert torch.equal(kept[-1].get(), gaussian(2, 3, seed=2)) and store._end == end
    assert all(torch.equal(one.get(), tensor) for one, tensor in zip(kept[:-1], tensors[1:], strict=True))
    kept.clear()
    assert store.left == budget


def test_a_part_of_a_larger_tensor_does_not_keep_the_rest() -> None:
    kept = KeptTensors(1 << 20).keep(gaussian(100, 4)[:, 1])
    assert kept.get().untyped_storage().nbytes() == 400
