"""lm-eval's `evaluate` on a loaded model, set up as lm-eval's own command does it."""

import contextlib
import io
import logging
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager

from .lm_eval_model import LmEvalModel
from .prompts import Prompting

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger("nestquant")
_lm_eval = logging.getLogger("lm_eval")


@dataclass(frozen=True)
class Settings:
    """How tasks are run.

    Attributes:
        num_fewshot: number of examples in the prompt; None is each task's own number.
        limit: items per task; below 1 it is a fraction of them; None is all.
        batch_size: sequences in a batch, or "auto" or "auto:N" for the largest that fit, searched once or N times.
        prompting: chat template and system instruction of the prompts.
        gen_kwargs: settings of generation that override the tasks' own.
        log_samples: whether the result has the items with prompts and answers.
        seed: seed of every random choice.
    """

    num_fewshot: int | None = None
    limit: float | None = None
    batch_size: int | str = 1
    prompting: Prompting = Prompting()  # noqa: RUF009  frozen
    gen_kwargs: Mapping[str, Any] | None = None
    log_samples: bool = False
    seed: int = 0


def run_tasks(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", tasks: list[Any], settings: Settings
) -> dict[str, Any]:
    """Runs tasks and returns lm-eval's result.

    lm-eval divides the requests over the processes of a team and gathers the results on rank 0.

    Args:
        model: the loaded model, in eval mode.
        tokenizer: its tokenizer, with an end of text, see `evaluation.prompts.complete_special_tokens`.
        tasks: lm-eval's task and group objects.
        settings: how the tasks are run.

    Returns:
        lm-eval's dictionary ("results", "groups", "versions", "samples" …) with "batch_sizes", those that "auto" found.
        On other ranks than 0 it has no scores.

    Raises:
        NestQuantError: logits are NaN or infinite, or a task asks for something that the model cannot do.
    """
    harness = LmEvalModel(model, tokenizer, settings.batch_size, settings.prompting)
    loaded = TaskManager(include_defaults=False).load(tasks)  # the default would read all definitions
    for name, task in loaded["tasks"].items():
        _set_up(name, task, settings)
    random.seed(settings.seed)
    np.random.seed(settings.seed)
    torch.manual_seed(settings.seed)
    limit, how = settings.limit, settings.prompting
    with _printed_to_log(), _warnings_to_log():
        result = evaluate(
            lm=harness,
            task_dict=loaded,
            limit=int(limit) if limit is not None and limit >= 1 else limit,
            log_samples=settings.log_samples,
            system_instruction=how.system,
            apply_chat_template=how.template is not None,
            fewshot_as_multiturn=how.as_turns,
        )
    return dict(result or {}) | {"batch_sizes": harness.detected}


def _set_up(name: str, task: Any, settings: Settings) -> None:
    """Sets generation, few-shot examples and seed of a task as lm-eval's own command does."""
    if settings.gen_kwargs is not None and task.get_config("output_type") == "generate_until":
        task.set_config(key="generation_kwargs", value=dict(settings.gen_kwargs), update=True)
    defined = task.get_config("num_fewshot")
    if settings.num_fewshot is not None and defined == 0 and settings.num_fewshot != 0:
        logger.warning("%s stays without examples: its definition says num_fewshot 0", name)
    elif settings.num_fewshot is not None or defined is None:
        task.set_config(key="num_fewshot", value=settings.num_fewshot or 0)
    task.set_fewshot_seed(seed=settings.seed)


@contextlib.contextmanager
def _printed_to_log() -> Iterator[None]:
    """Sends what lm-eval prints on standard output, which is for results, to the log at DEBUG."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    finally:
        for line in filter(None, map(str.strip, printed.getvalue().splitlines())):
            logger.debug("%s", line)


@contextlib.contextmanager
def _warnings_to_log() -> Iterator[None]:
    """Logs lm-eval's warnings, such as that a prompt was cut: the first of each kind, and the number of others."""
    heard = _WarningCounter()
    level, propagate = _lm_eval.level, _lm_eval.propagate
    _lm_eval.addHandler(heard)
    _lm_eval.setLevel(logging.WARNING)
    _lm_eval.propagate = False
    try:
        yield
    finally:
        _lm_eval.removeHandler(heard)
        _lm_eval.setLevel(level)
        _lm_eval.propagate = propagate
        for message, count in heard.kinds.values():
            logger.warning("%s%s", message, f" (and {count - 1} more such)" if count > 1 else "")


class _WarningCounter(logging.Handler):
    """Keeps the first message of each line of code that logs, and counts its records."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.kinds: dict[tuple[str, int], tuple[str, int]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        kind = record.pathname, record.lineno
        first, count = self.kinds.get(kind, (" ".join(record.getMessage().split()), 0))
        self.kinds[kind] = first, count + 1
