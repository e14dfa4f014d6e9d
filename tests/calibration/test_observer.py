import pytest
import torch
from torch import nn

from nestquant_cli.calibration.observer import InputGroups, KVObserver, choose, in_window
from nestquant_cli.models.structure import linears
from tests.families import gaussian, make_model


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


def test_an_observer_that_does_not_watch_keeps_nothing(observer: KVObserver) -> None:
    observer.watching = False
    observer.update(gaussian(1, 1, 4, 8), gaussian(1, 1, 4, 8), 0)
    assert observer.take() is None


class Layer(nn.Module):
    """Two matrices on one input, one on a copy of it, and one that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.copy, self.idle, self.second = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.first(x) + self.copy(x.clone()) + self.second(x)


def test_linears_are_grouped_by_the_tensor_they_are_given() -> None:
    layer, groups = Layer(), InputGroups()
    x, y = gaussian(3, 8), gaussian(3, 8, seed=1)
    with groups.watch(linears(layer)):
        layer(x)
        with in_window(1):
            layer(y)
    assert groups.members == {"first": ["first", "second"], "copy": ["copy"]}
    assert groups.inputs["first"][0] is x and groups.inputs["first"][1] is y
    layer(x)
    assert not any(module._forward_pre_hooks for module in layer.children())


def test_choose_takes_different_indices() -> None:
    generator = torch.Generator().manual_seed(0)
    chosen = choose(10, 4, generator)
    assert len(set(chosen.tolist())) == 4 and int(chosen.max()) < 10
    assert len(choose(3, 100, generator)) == 3
