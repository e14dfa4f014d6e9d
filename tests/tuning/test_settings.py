"""Settings of a tuning: their range, the course of the rate, and when checks are due."""

from typing import Any

import pytest

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.tuning.settings import TuneSettings


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"steps": 2.0}, {"seqlen": 1}, {"batch": True}, {"rate": 0}, {"rate": "x"}, {"checks": 0}]
)
def test_unusable_settings_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(NestQuantError, match=next(iter(wrong))):
        TuneSettings.from_dict(wrong)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"speed": 1}, "unknown setting 'speed'.*use one of steps"),
        ({"heldout": 1}, "did you mean 'held_out'"),
        (["steps"], "no mapping"),
        (3, "no mapping"),
    ],
)
def test_unknown_settings_are_refused(wrong: Any, told: str) -> None:
    with pytest.raises(NestQuantError, match=told):
        TuneSettings.from_dict(wrong)


def test_settings_survive_json() -> None:
    settings = TuneSettings(steps=7, rate=0.02)
    assert TuneSettings.from_dict(settings.to_dict()) == settings


def test_the_rate_rises_and_falls() -> None:
    settings = TuneSettings(steps=50)
    rates = [settings.rate_factor(step) for step in range(50)]
    assert max(rates) == rates[4] == rates[5] == 1
    assert rates[:5] == sorted(rates[:5]) and rates[5:] == sorted(rates[5:], reverse=True)
    assert 0 < rates[-1] < 0.01


@pytest.mark.parametrize("steps", [1, 5, 8, 37])
def test_checks_are_spread_and_the_last_step_is_one(steps: int) -> None:
    settings = TuneSettings(steps=steps, checks=8)
    due = [done for done in range(1, steps + 1) if settings.is_check(done)]
    assert len(due) == min(8, steps) and due[-1] == steps
