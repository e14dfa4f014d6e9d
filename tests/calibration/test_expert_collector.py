"""Inputs of experts: one code for all, a Hessian for each that is blended with that of all."""

import pytest
import torch
from torch import Tensor, nn

from nestquant_cli.calibration.expert_blocks import expert_bytes
from nestquant_cli.calibration.expert_collector import POOL_WIDTHS, ExpertCollector
from nestquant_cli.calibration.fit_settings import FitSettings
from nestquant_cli.calibration.input_collector import InputCollector
from nestquant_cli.calibration.input_groups import ExpertInput
from nestquant_cli.calibration.measure_layers import measure_layers
from nestquant_cli.calibration.statistics import LayerStatistics
from nestquant_cli.e8.shape import shape_for_bits
from nestquant_cli.models.weights import Weights
from nestquant_cli.parallel.team import Team
from tests.expert_models import CONFIGS, make_experts
from tests.families import gaussian, random_ids

FOUR = shape_for_bits(4)
CPU = torch.device("cpu")
NAMES = ("up.0", "up.1", "up.2")


def collector(first: int = 0) -> ExpertCollector:
    return ExpertCollector(ExpertInput((NAMES,)), 16, 8, 0, CPU, first)


def seen(calls: dict[int, Tensor]) -> ExpertCollector:
    source = collector()
    source.open(range(3))
    source.take({name: {0: [calls[expert]]} if expert in calls else {} for expert, name in enumerate(NAMES)})
    return source


def plain(x: Tensor) -> Tensor:
    own = InputCollector(16, 8, 0, CPU)
    own.add(x)
    return own.finish(["x"], None, "x").hessian


def test_an_expert_blends_its_own_hessian_with_that_of_all() -> None:
    one, other = gaussian(40, 16), 3 * gaussian(7, 16, seed=1)
    measured = seen({0: one, 2: other})
    measured.join(Team())
    measured.fit_shared(FOUR, "up.0")
    everyone, kappa = plain(torch.cat([one, other])), POOL_WIDTHS * 16
    items = [measured.finish(expert) for expert in range(3)]
    for item, tokens in zip(items, (one, None, other), strict=True):
        count = 0 if tokens is None else len(tokens)
        own = 0 if tokens is None else count * plain(tokens)
        torch.testing.assert_close(item.hessian, (own + kappa * everyone) / (count + kappa), rtol=1e-3, atol=1e-3)
        assert (item.tokens, item.pooled) == (count, kappa / (count + kappa))
        assert item.source == "up.0" and item.code == items[0].code
        ratio = float(item.noise.sum() / item.hessian.trace())
        assert ratio == pytest.approx(float(items[0].noise.sum() / items[0].hessian.trace()), rel=1e-5)


def test_tokens_of_zeros_are_none() -> None:
    x = gaussian(12, 16)
    x[::2] = 0
    whole = seen({0: x, 1: torch.zeros(5, 16)})
    whole.join(Team())
    assert whole.tokens == [6, 0, 0] and whole.pool.tokens == 6


def test_the_sample_is_drawn_from_the_tokens_of_all_experts() -> None:
    measured = seen({0: torch.ones(100, 16), 1: 2 * torch.ones(100, 16)})
    ((_, kept),) = measured._kept.values()
    assert kept.shape == (8, 16) and set(kept[:, 0].tolist()) == {1.0, 2.0}


class Listed(nn.Module):
    """Experts as a list of modules, as older models have them."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(16, 3)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 16)) for _ in range(3))


def test_lists_of_modules_next_to_a_router_are_experts() -> None:
    from nestquant_cli.models.expert_families import expert_families
    from nestquant_cli.models.structure import linears

    layer = Listed()
    assert expert_families(layer) == [tuple(f"experts.{e}.{place}" for e in range(3)) for place in (0, 1)]
    assert "gate" not in linears(layer) and len(linears(layer)) == 6
    layer.gate = nn.Linear(16, 5)
    assert expert_families(layer) == [] and len(linears(layer)) == 7


def statistics(family: str, budget: int = 1 << 30) -> list[list[LayerStatistics]]:
    settings, windows = FitSettings(FOUR, FOUR, 0), random_ids(3, 32)
    stream = measure_layers(Weights(make_experts(family)), windows, settings, budget=budget)
    return [list(parts) for parts in stream if parts is not None]


@pytest.mark.parametrize("family", CONFIGS)
def test_every_expert_has_statistics_of_one_input(family: str) -> None:
    (layer,) = statistics(family)[-1]
    experts = {name: item for name, item in layer.inputs.items() if item.source}
    sources = {item.source for item in experts.values()}
    assert len(sources) == 2
    for source in sources:
        items = [item for item in experts.values() if item.source == source]
        assert len(items) >= 4 and len({str(item.code) for item in items}) == 1
        assert any(item.tokens for item in items)
        assert not torch.equal(items[0].hessian, items[1].hessian)


@pytest.mark.parametrize("budget", [1, 3 * expert_bytes(64, 4), 7 * expert_bytes(64, 4)])
def test_the_budget_for_sums_changes_no_statistics(budget: int) -> None:
    for whole, parts in zip(statistics("qwen2_moe"), statistics("qwen2_moe", budget), strict=True):
        assert len(parts) > len(whole) == 1
        joined, expected = LayerStatistics.join(parts), whole[0]
        assert list(joined.inputs) == list(expected.inputs) and joined.cache == expected.cache
        for name, item in expected.inputs.items():
            found = joined.inputs[name]
            assert (found.members, found.code, found.tokens, found.pooled) == (
                item.members,
                item.code,
                item.tokens,
                item.pooled,
            )
            assert torch.equal(found.hessian, item.hessian) and torch.equal(found.noise, item.noise)
