"""Results of `eval-ppl` and `eval-tasks` for a model card, if they were measured on the checkpoint."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..base.errors import NestQuantError
from ..evaluation.gates import main_metric, main_name
from ..evaluation.provenance import windows_in_words
from ..storage.files import read_json
from .user_text import NOT_PUSHED

# options of the two commands that a result depends on
_SCORING = ("dataset", "split", "text_field", "seqlen", "max_windows", "bos", "baseline")
_TASKS = (
    *("tasks", "num_fewshot", "limit", "apply_chat_template", "chat_template", "system_instruction"),
    *("fewshot_as_multiturn", "gen_kwargs", "seed"),
)


@dataclass(frozen=True)
class Measured:
    """One row of the table of results.

    Attributes:
        what: what was measured, "perplexity" or the name of a task.
        protocol: how it was measured, in words.
        value: value as the table shows it.
        number: value for the card's metadata.
        metric: name of the metric for the metadata: "perplexity", or a metric of lm-eval.
        dataset: data set or task for the metadata.
        split: split of the data set, None for a task.
        original: value of the original model, "" if it was not scored.
        reference: description of that original model.
    """

    what: str
    protocol: str
    value: str
    number: float
    metric: str
    dataset: str
    split: str | None = None
    original: str = ""
    reference: str = ""


def read_results(paths: Sequence[Path], sha256: str) -> tuple[list[Measured], list[str], str | None]:
    """Reads rows and command lines from JSON files.

    Args:
        paths: files that `--output` of the evaluations wrote.
        sha256: fingerprint of the checkpoint, see `models.source.fingerprint`.

    Returns:
        the rows, the command lines that measured them, and the Hub id of the baseline, None without one.

    Raises:
        NestQuantError: a file is not a result, or is of another model.
    """
    rows: list[Measured] = []
    commands: list[str] = []
    base = None
    for path in paths:
        result = read_json(path)
        protocol = result.get("protocol") if isinstance(result, dict) else None
        if not isinstance(protocol, dict) or not ("perplexity" in result or "results" in result):
            raise NestQuantError(
                f"{path} is not a result", NOT_PUSHED, "give what eval-ppl or eval-tasks --output wrote"
            )
        if protocol["model"]["sha256"] != sha256:
            raise NestQuantError(f"{path} is of another model", NOT_PUSHED, "evaluate this checkpoint again")
        if "perplexity" in result:
            rows += _perplexity(result, protocol)
            baseline = protocol.get("baseline") or {}
            base = baseline["name"] if baseline.get("commit") else base
        else:
            rows += _tasks(result["results"], protocol)
        commands.append(_command(result.get("settings", {}), "perplexity" in result))
    return rows, commands, base


def without_folder(text: str) -> str:
    """The last part of a local path, so that a card does not publish folders; any other text unchanged."""
    return Path(text).name if text.startswith(("/", "./", "../", "~")) else text


def _perplexity(result: dict[str, Any], protocol: dict[str, Any]) -> list[Measured]:
    text = f"{without_folder(protocol['dataset'])} ({protocol['split']})"
    how = (
        f"{text}, {windows_in_words(protocol)} windows of {protocol['seqlen']} tokens, "
        f"BOS {protocol['bos']}, {protocol['model']['dtype']}"
    )
    original, value = result.get("baseline_perplexity"), result["perplexity"]
    baseline = protocol.get("baseline") or {}
    about = {
        "dataset": without_folder(protocol["dataset"]),
        "split": protocol["split"],
        "reference": baseline.get("description", ""),
    }
    of_original = "" if original is None else f"{original:.4f}"
    rows = [Measured("perplexity", how, f"{value:.4f}", value, "perplexity", original=of_original, **about)]
    if result.get("kl_divergence") is not None:
        value = result["kl_divergence"]
        what = "KL divergence from the original, nats"
        rows.append(Measured(what, how, f"{value:.5f}", value, "kl_divergence", **about))
        value = result["top1_agreement"]
        what = "top-1 agreement with the original"
        rows.append(Measured(what, how, f"{value:.4f}", value, "top1_agreement", **about))
    return rows


def _tasks(results: dict[str, Any], protocol: dict[str, Any]) -> list[Measured]:
    version = protocol["versions"].get("lm_eval", "")
    limit = "all items" if protocol["limit"] is None else f"limit {protocol['limit']:g}"
    template = ", with chat template" if protocol.get("chat_template") else ", without chat template"
    rows = []
    for task, values in results.items():
        value, error = main_metric(values)
        if value is not None:
            shown = f"{value:.4f}" + ("" if error is None else f" ± {error:.4f}")
            how = f"lm-eval {version}, {limit}, {protocol['num_fewshot'].get(task)} shots{template}, "
            how += protocol["model"]["dtype"]
            rows.append(Measured(task, how, shown, value, main_name(values), task))
    return rows


def _command(settings: dict[str, Any], perplexity: bool) -> str:
    options: list[str] = []
    for name in _SCORING if perplexity else _TASKS:
        value, option = settings.get(name), f"--{name.replace('_', '-')}"
        if value is True:
            options.append(option)
        elif value is False:
            options += [f"--no-{option[2:]}"] if name == "fewshot_as_multiturn" else []
        elif value is not None:
            options += [option, shlex.quote(without_folder(str(value)))]
    return " ".join(["nestquant", "eval-ppl" if perplexity else "eval-tasks", "CKPT", *options])
