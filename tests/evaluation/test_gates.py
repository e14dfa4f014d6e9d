"""Gates on tasks are read, checked against what is run, and compared with the right metric."""

import pytest

from nestquant_cli.base.errors import NestQuantError
from nestquant_cli.evaluation.gates import judge, judge_perplexity, parse_gate

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
    assert judge(parse_gate(text, METRICS), RESULTS).passed == holds


def test_a_verdict_names_task_metric_and_both_numbers() -> None:
    failed, passed = (judge(parse_gate(text, METRICS), RESULTS) for text in ("piqa=0.61", "piqa.acc_norm=0.7"))
    assert (failed.gate, failed.figures) == ("piqa acc >= 0.61", "piqa acc 0.6000 < 0.61")
    assert (passed.gate, passed.figures) == ("piqa acc_norm >= 0.7", "piqa acc_norm 0.7000 >= 0.7")


def test_a_metric_that_is_not_a_number_fails() -> None:
    found = judge(parse_gate("piqa=0", METRICS), {"piqa": {"acc,none": None}})
    assert (found.figures, found.passed) == ("piqa has no acc", False)


def test_the_gate_of_a_perplexity() -> None:
    assert judge_perplexity(6.5, 6.5).passed
    found = judge_perplexity(7.12345, 7)
    assert (found.gate, found.figures, found.passed) == ("perplexity <= 7", "perplexity 7.1235 > 7", False)
    assert not judge_perplexity(float("nan"), 7).passed
    for most in (float("nan"), float("inf")):
        with pytest.raises(NestQuantError, match="is not a finite number"):
            judge_perplexity(7, most)


@pytest.mark.parametrize(
    "text", ["piqa", "piqa=", "=0.5", "piqa=high", "piqa=nan", "piqa=inf", "piqa.acc=-inf", "", "piqa 0.5"]
)
def test_malformed_gates_are_refused(text: str) -> None:
    with pytest.raises(NestQuantError, match="cannot be read"):
        parse_gate(text)


def test_gates_about_what_is_not_run_are_refused() -> None:
    with pytest.raises(NestQuantError, match="not in --tasks"):
        parse_gate("arc_easy=0.5", METRICS)
    with pytest.raises(NestQuantError, match="piqa has no metric 'f1'"):
        parse_gate("piqa.f1=0.5", METRICS)
