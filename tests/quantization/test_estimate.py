"""The estimate follows the work: what it foretells of this machine is right within its factor only when it is idle."""

from pathlib import Path

import pytest

from nestquant_cli.calibration.hidden import DEFAULT_BUDGET
from nestquant_cli.models.source import resolve
from nestquant_cli.models.weights import open_weights
from nestquant_cli.quantization import estimate
from nestquant_cli.quantization.plan import Plan, make_plan
from nestquant_cli.quantization.recipe import Recipe

RATES = {"single": 1e9, "integer": 4e9, "each": 1e-3}


@pytest.fixture(autouse=True)
def _a_machine_of_known_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "_product_rate", lambda *_: RATES["single"])
    monkeypatch.setattr(estimate, "_integer_rate", lambda *_: RATES["integer"])
    monkeypatch.setattr(estimate, "_time", lambda _: RATES["each"])


def seconds(folder: Path, recipe: Recipe) -> float:
    source = resolve(str(folder))
    plan: Plan = make_plan(source, recipe, open_weights(source, "cpu").model, DEFAULT_BUDGET)
    return estimate.estimate_seconds(plan, recipe, "cpu")


def test_more_tokens_take_longer_by_what_they_add(tiny_model_folder: Path) -> None:
    few, twice, more = (seconds(tiny_model_folder, Recipe(samples=n, seqlen=64)) for n in (64, 128, 192))
    assert 0 < few < twice < more
    assert more - twice == pytest.approx(twice - few)


def test_weights_in_sixteen_bits_are_not_rounded(tiny_model_folder: Path) -> None:
    whole = seconds(tiny_model_folder, Recipe(samples=4, seqlen=64))
    assert seconds(tiny_model_folder, Recipe(samples=4, seqlen=64, weight_bits=16)) < whole


def test_tuning_is_counted_by_its_windows(tiny_model_folder: Path) -> None:
    plain, few, many = (
        seconds(tiny_model_folder, Recipe(samples=4, seqlen=64, tune=tune))
        for tune in (None, {"steps": 100, "checks": 1}, {"steps": 100, "checks": 1, "batch": 3})
    )
    assert plain < few < many
    assert (many - few) / (few - plain) == pytest.approx(
        200 * estimate.STEP / (100 * estimate.STEP + 16 * estimate.CHECK)
    )


def test_a_faster_machine_takes_less_time(tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = seconds(tiny_model_folder, Recipe(samples=64, seqlen=64))
    monkeypatch.setattr(estimate, "_product_rate", lambda *_: 2 * RATES["single"])
    assert seconds(tiny_model_folder, Recipe(samples=64, seqlen=64)) < slow


def test_pieces_are_timed_on_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    import torch

    for rate in (
        estimate._product_rate(torch.device("cpu"), torch.float32),
        estimate._integer_rate(torch.device("cpu")),
    ):
        assert 1e7 < rate < 1e16
