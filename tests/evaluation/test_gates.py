"""Gates on tasks are read, checked against what is run, and compared with the right metric."""

import pytest

from nestquant_cli.errors import NestQuantError
from nestquant_cli.evaluation.gates import failure, parse_gate

METRICS = {"piqa": ["acc", "acc_norm"], "gsm8k": ["exact_match"], "mmlu": []}
RESULTS = {
    "piqa": {"alias": "piqa", "acc,none": 0.6, "acc_stderr,none": 0.01, "acc_norm,none": 0.7},
    "gsm8k": {"alias": "gsm8k", "exact_match,strict-match": 0.2, "exact_match,flexible-extract": 0.4},
    "mmlu": {"alias": "mmlu"},
}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("piqa=0.6", True),
        ("piqa=0.61", False),
        ("piqa.acc_norm=0.7", True),
        ("piqa.acc_norm=0.71", False),
        ("gsm8k=0.2", True),
        ("gsm8k=0.3", False),
        ("mmlu=0", False),
    ],
)
def test_the_main_or_the_named_metric_is_compared(text: str, holds: bool) -> None:
    line = failure(parse_gate(text, METRICS), RESULTS)
    assert (line is None) == holds
    assert holds or (line and line.startswith("gate failed: "))


def test_a_failed_gate_names_task_metric_and_both_numbers() -> None:
    assert failure(parse_gate("piqa=0.61", METRICS), RESULTS) == "gate failed: piqa acc 0.6000 < 0.61"


def test_a_metric_that_is_not_a_number_fails() -> None:
    assert failure(parse_gate("piqa=0", METRICS), {"piqa": {"acc,none": None}}) == "gate failed: piqa has no acc"


@pytest.mark.parametrize("text", ["piqa", "piqa=", "=0.5", "piqa=high", "piqa=nan", "", "piqa 0.5"])
def test_malformed_gates_are_refused(text: str) -> None:
    with pytest.raises(NestQuantError, match="cannot be read"):
        parse_gate(text)


def test_gates_about_what_is_not_run_are_refused() -> None:
    with pytest.raises(NestQuantError, match="not in --tasks"):
        parse_gate("arc_easy=0.5", METRICS)
    with pytest.raises(NestQuantError, match="piqa has no metric 'f1'"):
        parse_gate("piqa.f1=0.5", METRICS)
