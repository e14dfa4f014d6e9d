"""lm-eval's `evaluate` on a loaded model, with what its own command does before."""

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
        num_fewshot: examples in the prompt; None is each task's own number.
        limit: items per task; below 1 a fraction of them; None is all.
        batch_size: sequences at a time, or "auto" or "auto:N" for the largest that fit, found once or N times.
        gen_kwargs: settings of generation that win over the tasks' own.
        log_samples: whether the result has the items with prompts and answers.
        seed: of everything that is drawn at random.
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
    """lm-eval's result: scores, groups, versions, samples, and "batch_sizes" that were found automatically.

    lm-eval itself divides the requests over the processes of a team and gathers the results on rank 0; the dictionary
    of the others has no scores.

    Args:
        model: loaded, in eval mode.
        tokenizer: with an end of text, see `prompts.complete_special_tokens`.
        tasks: lm-eval's task and group objects.

    Raises:
        NestQuantError: logits that are NaN or infinite, or what a task asks for cannot be done.
    """
    harness = LmEvalModel(model, tokenizer, settings.batch_size, settings.prompting)
    loaded = TaskManager(include_defaults=False).load(tasks)  # they are objects; all definitions are read without it
    for name, task in loaded["tasks"].items():
        _set_up(name, task, settings)
    random.seed(settings.seed)
    np.random.seed(settings.seed)
    torch.manual_seed(settings.seed)
    limit, how = settings.limit, settings.prompting
    with _printed_to_log(), _warnings_told():
        found = evaluate(
            lm=harness,
            task_dict=loaded,
            limit=int(limit) if limit is not None and limit >= 1 else limit,
            log_samples=settings.log_samples,
            system_instruction=how.system,
            apply_chat_template=how.template is not None,
            fewshot_as_multiturn=how.as_turns,
        )
    return dict(found or {}) | {"batch_sizes": harness.detected}


def _set_up(name: str, task: Any, settings: Settings) -> None:
    """As lm-eval's own command does with the settings that change a task."""
    if settings.gen_kwargs is not None and task.get_config("output_type") == "generate_until":
        task.set_config(key="generation_kwargs", value=dict(settings.gen_kwargs), update=True)
    own = task.get_config("num_fewshot")
    if settings.num_fewshot is not None and own == 0 and settings.num_fewshot != 0:
        logger.warning("%s stays without examples: its definition says num_fewshot 0", name)
    elif settings.num_fewshot is not None or own is None:
        task.set_config(key="num_fewshot", value=settings.num_fewshot or 0)
    task.set_fewshot_seed(seed=settings.seed)


@contextlib.contextmanager
def _printed_to_log() -> Iterator[None]:
    """Standard output is for results: what lm-eval prints goes to the log of --debug."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    finally:
        for line in filter(None, map(str.strip, printed.getvalue().splitlines())):
            logger.debug("%s", line)


@contextlib.contextmanager
def _warnings_told() -> Iterator[None]:
    """Passes lm-eval's warnings on, such as that a prompt was cut: one of each kind, with their number."""
    heard = _Heard()
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


class _Heard(logging.Handler):
    """Counts records by the line of code that they come from."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.kinds: dict[tuple[str, int], tuple[str, int]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        kind = record.pathname, record.lineno
        first, count = self.kinds.get(kind, (" ".join(record.getMessage().split()), 0))
        self.kinds[kind] = first, count + 1
