import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.calibration.input_collector import InputCollector, watch_all
from nestquant_cli.calibration.statistics import InputStatistics
from nestquant_cli.codecs.nested.fit import gaussian_error
from nestquant_cli.e8.shape import CodeShape, shape_for_bits
from nestquant_cli.rotation.transform import rotation
from tests.families import gaussian

CPU = torch.device("cpu")
SEED = 3


def collected(windows: list[torch.Tensor], shape: CodeShape | None) -> InputStatistics:
    collector = InputCollector(windows[0].shape[-1], 64, SEED, CPU)
    for window in windows:
        collector.add(window)
    return collector.finish(["a", "b"], shape, "layer.a")


@pytest.mark.parametrize("features", [64, 20])
def test_the_hessian_is_the_mean_of_rotated_outer_products(features: int) -> None:
    windows = [gaussian(1, 50, features, seed=seed) * torch.linspace(0.1, 3, features) for seed in range(3)]
    statistics = collected(windows, None)
    padding = -features % 8
    R = rotation(features + padding, SEED).matrix().double()
    x = F.pad(torch.cat(windows, dim=1)[0].double(), (0, padding)) @ R.t()
    torch.testing.assert_close(statistics.hessian.double(), x.t() @ x / len(x), rtol=0, atol=0.02)
    assert torch.equal(statistics.hessian, statistics.hessian.t())
    assert statistics.members == ("a", "b")
    assert statistics.code is None and not statistics.noise.any()


def test_noise_is_per_token_and_in_the_units_of_the_hessian() -> None:
    """On Gaussian data noise over signal is the code's error, whatever the size of the data and their number."""
    shape = shape_for_bits(4)
    for scale, count in ((1.0, 3), (100.0, 6)):
        statistics = collected([scale * gaussian(1, 200, 64, seed=seed) for seed in range(count)], shape)
        assert statistics.code is not None
        ratio = float(statistics.noise.mean() / statistics.hessian.diagonal().mean())
        assert ratio == pytest.approx(gaussian_error(statistics.code, gaussian(4096, 8)), rel=0.15)


def test_the_input_of_the_first_of_a_group_is_watched() -> None:
    modules = {"a": nn.Linear(8, 4), "b": nn.Linear(8, 2)}
    collectors = {"a": InputCollector(8, 4, 0, CPU)}
    with watch_all(collectors, modules):
        for module in modules.values():
            module(gaussian(1, 5, 8))
    modules["a"](gaussian(1, 5, 8))
    collectors["a"].flush()
    assert collectors["a"].gram.tokens == 5
    assert [kept.shape for kept in collectors["a"].kept] == [(4, 8)]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_input_that_is_not_finite_is_named(value: float) -> None:
    x = gaussian(1, 8, 16)
    x[0, 3, 5] = value
    with pytest.raises(NestQuantError, match=r"the input of layer\.a has NaN or infinite values"):
        collected([x], shape_for_bits(4))
