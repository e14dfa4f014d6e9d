"""Quality gates: thresholds for a perplexity, and for lm-eval results, written `task=X` or `task.metric=X`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..base.errors import NestQuantError
from ..base.names import nearest

NOT_EVALUATED = "nothing was evaluated"
MAIN_METRICS = ("acc", "acc_norm")  # the main metric is the first of these that a task has, else its first metric


@dataclass(frozen=True)
class Gate:
    """Least value of a metric of a task.

    Attributes:
        text: the gate as the user wrote it.
        task: name of a task or group.
        metric: name of the metric; None is the task's main metric.
        threshold: least value that passes.
    """

    text: str
    task: str
    metric: str | None
    threshold: float


@dataclass(frozen=True)
class Verdict:
    """Outcome of a gate.

    Attributes:
        gate: the condition, "perplexity <= 7".
        figures: measured value and threshold, "perplexity 7.1234 > 7".
        passed: whether the condition holds.
    """

    gate: str
    figures: str
    passed: bool


def parse_gate(text: str, tasks: Mapping[str, Sequence[str]] | None = None) -> Gate:
    """Reads "task=0.7" or "task.metric=0.7".

    Args:
        text: the gate as the user wrote it.
        tasks: the tasks and groups that are run, each with the names of its metrics, which are empty where they are not
            known beforehand. None checks the form only.

    Raises:
        NestQuantError: malformed, for a task that is not run, or for a metric that the task does not have.
    """
    left, _, right = text.rpartition("=")
    try:
        threshold = float(right)
    except ValueError:
        threshold = math.nan
    if not left or not math.isfinite(threshold):
        raise NestQuantError(
            f"--fail-below {text} cannot be read", NOT_EVALUATED, "write task=0.7 or task.acc_norm=0.7"
        )
    if tasks is None or left in tasks:
        return Gate(text, left, None, threshold)
    task, _, metric = left.rpartition(".")
    if task not in tasks:
        raise NestQuantError(
            f"--fail-below {text} names a task that is not in --tasks", NOT_EVALUATED, nearest(left, tasks)
        )
    if tasks[task] and metric not in tasks[task]:
        raise NestQuantError(f"task {task} has no metric '{metric}'", NOT_EVALUATED, nearest(metric, tasks[task]))
    return Gate(text, task, metric, threshold)


def judge(gate: Gate, results: Mapping[str, Mapping[str, Any]]) -> Verdict:
    """Compares a metric of a task with its threshold. A metric that is missing or not a number fails.

    Args:
        gate: the gate.
        results: lm-eval's results: task -> "metric,filter" -> value. If a metric has several filters, the first counts.
    """
    values = _by_metric(results.get(gate.task, {}))
    metric = gate.metric or _main(values)
    value = values.get(metric)
    name = f"{gate.task} {metric} >= {gate.threshold:g}"
    if not isinstance(value, (int, float)):
        return Verdict(name, f"{gate.task} has no {metric}", False)
    passed = value >= gate.threshold
    return Verdict(name, f"{gate.task} {metric} {value:.4f} {'>=' if passed else '<'} {gate.threshold:g}", passed)


def judge_perplexity(perplexity: float, most: float) -> Verdict:
    """Compares a perplexity with the threshold of `--fail-above`. NaN fails.

    Args:
        perplexity: measured value.
        most: largest value that passes.

    Raises:
        NestQuantError: `most` is not a finite number.
    """
    if not math.isfinite(most):
        raise NestQuantError(
            f"--fail-above {most} is not a finite number", NOT_EVALUATED, "give a perplexity, such as 7"
        )
    passed = perplexity <= most
    figures = f"perplexity {perplexity:.4f} {'<=' if passed else '>'} {most:g}"
    return Verdict(f"perplexity <= {most:g}", figures, passed)


def main_metric(result: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """Value of a task's main metric and its standard error; None for what is missing or not a number.

    Args:
        result: lm-eval's result of one task, "metric,filter" -> value.
    """
    values = _by_metric(result)
    return _number(values.get(_main(values))), _number(values.get(f"{_main(values)}_stderr"))


def main_name(result: Mapping[str, Any]) -> str:
    """Name of a task's main metric, from lm-eval's result of the task."""
    return _main(_by_metric(result))


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None


def _by_metric(result: Mapping[str, Any]) -> dict[str, Any]:
    """Values by name of the metric; of several filters, the value of the first."""
    values: dict[str, Any] = {}
    for key, value in result.items():
        name, comma, _ = key.partition(",")
        if comma:
            values.setdefault(name, value)
    return values


def _main(values: Mapping[str, Any]) -> str:
    first = next((name for name in values if not name.endswith("_stderr")), "metric")
    return next((name for name in MAIN_METRICS if name in values), first)
