import pytest
import torch

from nestquant_cli.calibration.current_window import in_window
from nestquant_cli.calibration.kv_observer import KVObserver
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
