"""The estimate counts the work that is done: what it foretells is right within its factor only on an idle machine."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from nestquant_cli.calibration.hidden_states import DEFAULT_BUDGET
from nestquant_cli.checkpoint.load import load_model
from nestquant_cli.models.source import resolve
from nestquant_cli.models.structure import find_decoder
from nestquant_cli.models.weights import open_weights
from nestquant_cli.pipeline import estimate
from nestquant_cli.pipeline.plan import make_plan
from nestquant_cli.pipeline.recipe import Recipe
from tests.families import random_ids

RATES = {"product": 1e9, "integer": 4e9, "seconds": 1e-3}
PRODUCTS = ("aten.mm", "aten.addmm")  # those of Linears; attention is not estimated


@pytest.fixture
def seconds(tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., float]:
    """The estimate for the tiny model on a machine of known speed."""
    source = resolve(str(tiny_model_folder))
    model = open_weights(source, "cpu").model

    def of(recipe: Recipe, **rates: float) -> float:
        speed = RATES | rates
        monkeypatch.setattr(estimate, "_product_rate", lambda *_: speed["product"])
        monkeypatch.setattr(estimate, "_integer_rate", lambda *_: speed["integer"])
        monkeypatch.setattr(estimate, "_time", lambda _: speed["seconds"])
        return estimate.estimate_seconds(make_plan(source, recipe, model, DEFAULT_BUDGET), recipe, "cpu")

    return of


def multiplied(work: Callable[[], object]) -> int:
    """Operations of the matrix products that `work` runs."""
    with FlopCounterMode(display=False) as counter:
        work()
    counts = counter.get_flop_counts()["Global"]
    return sum(count for operator, count in counts.items() if str(operator).startswith(PRODUCTS))


def test_a_token_costs_what_the_layers_multiply_for_it(seconds: Any, tiny_model_folder: Path) -> None:
    model, ids = load_model(resolve(str(tiny_model_folder)), torch.float32), random_ids(1, 64)
    with torch.no_grad():
        operations = multiplied(lambda: find_decoder(model).owner(input_ids=ids, use_cache=False))
    few, more = (seconds(Recipe(samples=n, seqlen=64, act_bits=16), integer=float("inf")) for n in (3, 4))
    assert (more - few) * RATES["product"] == pytest.approx(estimate.OVERHEAD * operations)


def test_weights_in_sixteen_bits_cost_no_search(seconds: Any) -> None:
    def search(time: float) -> float:
        rounded, left = (seconds(Recipe(samples=4, weight_bits=bits), seconds=time, **fast) for bits in (4, 16))
        return float(rounded - left)

    fast = {"product": float("inf"), "integer": float("inf")}
    assert search(1.0) == pytest.approx(1000 * search(1e-3)) and search(1.0) > 0


def test_tuning_is_counted_by_its_windows(seconds: Any) -> None:
    def tuned(**settings: int) -> float:
        found: float = seconds(Recipe(samples=4, seqlen=64, tune={"steps": 100, "checks": 1, "seqlen": 32} | settings))
        return found

    plain, one = seconds(Recipe(samples=4, seqlen=64)), tuned()
    assert tuned(steps=200) == pytest.approx(tuned(batch=2))
    assert tuned(seqlen=64) - plain == pytest.approx(2 * (one - plain))
    looked_at, stepped = tuned(held_out=108) - one, tuned(steps=200) - one
    assert 0 < looked_at / 2 < stepped  # 100 windows, each before and after: without a way back


def test_the_rate_is_of_the_operations_that_were_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []

    def one_second(work: Callable[[], object]) -> float:
        counted.append(multiplied(work))
        return 1.0

    monkeypatch.setattr(estimate, "_time", one_second)
    rates = [estimate._product_rate(torch.device("cpu"), dtype) for dtype in (torch.float32, torch.float64)]
    assert rates == counted


def test_the_first_run_warms_up_and_the_faster_of_the_others_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, lasts = [0.0], iter([1.0, 7.0, 5.0])

    def work() -> None:
        clock[0] += next(lasts)

    monkeypatch.setattr(estimate.time, "monotonic", lambda: clock[0])
    assert estimate._time(work) == 5.0
