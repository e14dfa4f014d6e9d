"""Quality gates: on a perplexity, and on lm-eval results, where `task=X` or `task.metric=X` are told apart."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..base.errors import NestQuantError
from ..base.names import nearest

NOT_EVALUATED = "nothing was evaluated"
MAIN_METRICS = ("acc", "acc_norm")  # the first one that a task has; else its first metric


@dataclass(frozen=True)
class Gate:
    """A threshold for a task; its main metric where `metric` is None.

    Attributes:
        text: as the user wrote it.
    """

    text: str
    task: str
    metric: str | None
    threshold: float


@dataclass(frozen=True)
class Verdict:
    """What became of a gate.

    Attributes:
        gate: what it asks for, "perplexity <= 7".
        figures: what was found beside it, "perplexity 7.1234 > 7".
        passed: whether it holds.
    """

    gate: str
    figures: str
    passed: bool


def parse_gate(text: str, tasks: Mapping[str, Sequence[str]] | None = None) -> Gate:
    """Reads "task=0.7" or "task.metric=0.7".

    Args:
        tasks: the tasks and groups that are run, each with the names of its metrics, empty where they are not known
            beforehand; None checks the form only.

    Raises:
        NestQuantError: malformed, about a task that is not run, or about a metric that the task does not have.
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
            f"--fail-below {text} is about a task that is not in --tasks", NOT_EVALUATED, nearest(left, tasks)
        )
    if tasks[task] and metric not in tasks[task]:
        raise NestQuantError(f"task {task} has no metric '{metric}'", NOT_EVALUATED, nearest(metric, tasks[task]))
    return Gate(text, task, metric, threshold)


def judge(gate: Gate, results: Mapping[str, Mapping[str, Any]]) -> Verdict:
    """Compares what a gate is about. What is missing or not a number fails.

    Args:
        gate: on a task.
        results: lm-eval's, task -> "metric,filter" -> value. Where a metric has several filters the first one counts.
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
    """The gate of `--fail-above`; a perplexity of NaN fails.

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
    """The main metric of a task and its standard error, from lm-eval's result; None for what is no number."""
    values = _by_metric(result)
    found = values.get(_main(values)), values.get(f"{_main(values)}_stderr")
    value, error = (float(each) if isinstance(each, (int, float)) else None for each in found)
    return value, error


def main_name(result: Mapping[str, Any]) -> str:
    """The name of the main metric of a task."""
    return _main(_by_metric(result))


def _by_metric(result: Mapping[str, Any]) -> dict[str, Any]:
    """Values by name, of several filters the first one's."""
    values: dict[str, Any] = {}
    for key, value in result.items():
        name, comma, _ = key.partition(",")
        if comma:
            values.setdefault(name, value)
    return values


def _main(values: Mapping[str, Any]) -> str:
    first = next((name for name in values if not name.endswith("_stderr")), "metric")
    return next((name for name in MAIN_METRICS if name in values), first)
