"""Tasks: the loaded model handed to lm-eval's own API, so that tasks, metrics and the table are the usual ones."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import NestQuantError
from ..finite import all_finite
from ..models.device import pick_device
from ..models.source import Source, load_model, load_tokenizer, resolve
from ..team import team
from .gates import NOT_EVALUATED, Gate, Verdict, judge, parse_gate
from .protocol import hold_weights, model_protocol, versions
from .task_definitions import load_tasks

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class TaskOptions:
    """What to evaluate; the fields are the options of `nestquant eval-tasks`.

    Attributes:
        model: a name as `models.resolve.resolve` takes it, or what that found.
        tasks: names of tasks, groups or tags of lm-eval, or of YAML files in `include_path`; patterns such as "mmlu_*".
        num_fewshot: examples in the prompt; None is each task's own number.
        limit: items per task; below 1 a fraction of them; None is all.
        include_path: a folder with further task YAML files.
        fail_below: gates, "task=X" or "task.metric=X".
        resident: form of quantized weights in memory, see `modules.resident.set_resident`.
        revision: branch, tag or commit of a model on the Hub.
    """

    model: str | Source
    tasks: tuple[str, ...]
    num_fewshot: int | None = None
    limit: float | None = None
    include_path: "Path | None" = None
    batch_size: int = 1
    fail_below: tuple[str, ...] = ()
    seed: int = 0
    dtype: str = "auto"
    device: str = "auto"
    resident: str = "auto"
    revision: str | None = None


@dataclass(frozen=True)
class TaskReport:
    """lm-eval's results and table, the protocol, and a verdict on every gate."""

    results: dict[str, Any]
    table: str
    protocol: dict[str, Any]
    verdicts: list[Verdict]

    def as_json(self) -> dict[str, Any]:
        """`results` as lm-eval gives them (NaN as null), the protocol, and the figures of the failed gates."""
        failed = [verdict.figures for verdict in self.verdicts if not verdict.passed]
        return {"results": self.results, "protocol": self.protocol, "failed_gates": failed}


def measure_tasks(options: TaskOptions) -> TaskReport:
    """Checks names, gates and data sets, then loads the model and runs the tasks.

    Raises:
        NestQuantError: bad input, data of a task that cannot be read, or logits that are NaN or infinite.
    """
    start = time.monotonic()
    _check_numbers(options)
    for text in options.fail_below:
        parse_gate(text)
    source = resolve(options.model, options.revision)
    device = pick_device(options.device)
    tasks = load_tasks(options.tasks, options.include_path)
    metrics = {name: list(task.aggregation()) if hasattr(task, "aggregation") else [] for name, task in tasks.items()}
    gates = [parse_gate(text, metrics) for text in options.fail_below]
    tokenizer = load_tokenizer(source)
    model = load_model(source, options.dtype, device)
    held = hold_weights(model, options.resident)
    found = run_tasks(model, tokenizer, list(tasks.values()), options)
    circumstances = {
        "seconds": time.monotonic() - start,
        "resident": held,
        "processes": team().size,
        "model": model_protocol(source, model),
    }
    return team().lead(lambda: _report(found, options, gates, circumstances))


def _report(
    found: dict[str, Any], options: TaskOptions, gates: Sequence[Gate], circumstances: dict[str, Any]
) -> TaskReport:
    results = _finite(found["results"])
    protocol = {
        "tasks": list(options.tasks),
        "task_versions": _finite(found.get("versions", {})),
        "num_fewshot": _finite(found.get("n-shot", {})),
        "samples": found.get("n-samples", {}),
        "limit": options.limit,
        "batch_size": options.batch_size,
        "include_path": str(options.include_path) if options.include_path else None,
        "seed": dict.fromkeys(("random", "numpy", "torch", "fewshot"), options.seed),
        **circumstances,
        "versions": versions("lm_eval", "datasets"),
    }
    scores = {**results, **_finite(found.get("groups", {}))}
    return TaskReport(results, _table(found), protocol, [judge(gate, scores) for gate in gates])


def run_tasks(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", tasks: list[Any], options: TaskOptions
) -> dict[str, Any]:
    """lm-eval's `simple_evaluate` on a loaded model; its dictionary without the samples.

    lm-eval itself divides the requests over the processes of a team and gathers the results on rank 0; the dictionary
    of the others is empty.

    Raises:
        NestQuantError: logits that are NaN or infinite, which lm-eval would count as an ordinary wrong answer.
    """
    import lm_eval
    import torch
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    group = team()

    class CheckedModel(HFLM):
        rank = property(lambda self: group.rank)  # what lm-eval asks of a model to share requests
        world_size = property(lambda self: group.size)

        def all_gather(self, tensor: Any) -> Any:
            return torch.stack(group.gather(tensor.cpu()))

        def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
            gathered = group.gather(obj)
            return gathered if group.rank == dst else None

        def barrier(self) -> None:
            group.gather(None)

        def _model_call(self, *arguments: Any, **named: Any) -> Any:
            logits = super()._model_call(*arguments, **named)
            if not all_finite(logits):
                raise NestQuantError(
                    "the logits of the model are NaN or infinite",
                    "the tasks have no result",
                    "the model is damaged, or its dtype is too narrow: try 'nestquant verify', or another --dtype",
                )
            return logits

    limit = options.limit
    found = lm_eval.simple_evaluate(
        CheckedModel(pretrained=model, tokenizer=tokenizer, batch_size=options.batch_size),
        tasks=tasks,
        num_fewshot=options.num_fewshot,
        batch_size=options.batch_size,
        task_manager=TaskManager(include_defaults=False),  # the tasks are loaded; without it all definitions are read
        limit=int(limit) if limit is not None and limit >= 1 else limit,
        log_samples=False,
        random_seed=options.seed,
        numpy_random_seed=options.seed,
        torch_random_seed=options.seed,
        fewshot_random_seed=options.seed,
    )
    return dict(found or {})


def _check_numbers(options: TaskOptions) -> None:
    limit, fewshot = options.limit, options.num_fewshot
    if not options.tasks:
        raise NestQuantError("--tasks is empty", NOT_EVALUATED, "name tasks, such as --tasks piqa,arc_easy")
    if limit is not None and not (limit > 0 and (limit < 1 or limit == int(limit))):
        raise NestQuantError(f"--limit {limit:g}", NOT_EVALUATED, "use a number of items, or a fraction below 1")
    if options.batch_size < 1 or (fewshot is not None and fewshot < 0):
        raise NestQuantError("a negative number or a batch of none", NOT_EVALUATED, "check the options")


def _finite(value: Any) -> Any:
    """As JSON can hold it: numpy numbers as Python's, NaN and infinities as None."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)


def _table(found: dict[str, Any]) -> str:
    from lm_eval.utils import make_table

    table = make_table(found)
    return table + ("\n" + make_table(found, "groups") if found.get("groups") else "")
