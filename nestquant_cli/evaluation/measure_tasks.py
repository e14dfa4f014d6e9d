"""A whole run of lm-eval tasks, from names to a report with its protocol, as `nestquant eval-tasks` runs it.

The loaded model goes to lm-eval's own API, so that tasks, metrics and the table are lm-eval's.
"""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..base.errors import NestQuantError
from ..checkpoint.load import load_model
from ..models.device_choice import pick_device
from ..models.source import Source, load_tokenizer, resolve
from ..modules.resident import set_resident_if_quantized
from ..parallel.team import team
from .gates import NOT_EVALUATED, Gate, Verdict, judge, parse_gate
from .generated.checks import checked_making
from .generated.definitions import NEEDLE
from .prompts import Prompting, complete_special_tokens, prompting, read_gen_kwargs
from .provenance import model_protocol, versions
from .task_definitions import load_tasks

if TYPE_CHECKING:
    from pathlib import Path


logger = logging.getLogger("nestquant")


@dataclass(frozen=True)
class TaskOptions:
    """What to evaluate; the fields are the options of `nestquant eval-tasks`.

    Attributes:
        model: a name that `models.resolve.resolve` accepts, or the source that it returns.
        tasks: names of tasks, groups or tags of lm-eval, of YAML files in `include_path`, or of
            `generated.definitions.GENERATED`; patterns such as "mmlu_*".
        num_fewshot: number of examples in the prompt; None is each task's own number.
        limit: items per task; below 1 it is a fraction of them; None is all.
        include_path: folder with further task YAML files.
        needle_tokens: tokens of a prompt of the task `needle`; None is its own number.
        needle_depth: place of its fact in the text, from 0 to 1; None for places that cover the text evenly.
        batch_size: sequences in a batch, or "auto" or "auto:N" for the largest that fit, searched once or N times.
        chat_template: whether prompts go through the tokenizer's chat template, or the name of one of several.
        system_instruction: text before every prompt; the system message if there is a chat template.
        fewshot_as_multiturn: whether few-shot examples are turns of a conversation; None is yes with a template only.
        gen_kwargs: settings of generation that override the tasks' own, "name=value,name=value" or a JSON object.
        log_samples: whether the report has the items with prompts and answers.
        fail_below: quality gates, "task=X" or "task.metric=X".
        seed: seed of every random choice.
        dtype: "auto", "float32", "bfloat16" or "float16".
        device: torch device; "auto" is a GPU if there is one.
        resident: form of quantized weights in memory, "packed", "int8" or "auto".
        revision: branch, tag or commit of a model on the Hub.
    """

    model: str | Source
    tasks: tuple[str, ...]
    num_fewshot: int | None = None
    limit: float | None = None
    include_path: "Path | None" = None
    needle_tokens: int | None = None
    needle_depth: float | None = None
    batch_size: int | str = 1
    chat_template: bool | str = False
    system_instruction: str | None = None
    fewshot_as_multiturn: bool | None = None
    gen_kwargs: str | None = None
    log_samples: bool = False
    fail_below: tuple[str, ...] = ()
    seed: int = 0
    dtype: str = "auto"
    device: str = "auto"
    resident: str = "auto"
    revision: str | None = None


@dataclass(frozen=True)
class TaskReport:
    """Result of `measure_tasks`.

    Attributes:
        results: lm-eval's results, task -> "metric,filter" -> value, with NaN as None.
        table: lm-eval's table of the results.
        how: prompts, batch size and generation settings, in one line.
        protocol: everything that is needed to repeat the run, JSON-ready.
        verdicts: outcome of every quality gate.
        samples: one JSON-ready dictionary per item, as lm-eval logs them, with the name of the task as "task"; empty
            unless they were asked for.
    """

    results: dict[str, Any]
    table: str
    how: str
    protocol: dict[str, Any]
    verdicts: list[Verdict]
    samples: list[dict[str, Any]]

    def as_json(self) -> dict[str, Any]:
        """JSON-ready: "results", "protocol", and "failed_gates" with value and threshold of each."""
        failed = [verdict.figures for verdict in self.verdicts if not verdict.passed]
        return {"results": self.results, "protocol": self.protocol, "failed_gates": failed}


def measure_tasks(options: TaskOptions) -> TaskReport:
    """Checks names, gates, data sets and prompts, then loads the model and runs the tasks.

    Raises:
        NestQuantError: bad input, data of a task that cannot be read, or logits that are NaN or infinite.
    """
    from .lm_eval_run import Settings, run_tasks

    start = time.monotonic()
    _check_numbers(options)
    for text in options.fail_below:
        parse_gate(text)
    gen_kwargs = read_gen_kwargs(options.gen_kwargs)
    source = resolve(options.model, options.revision)
    device = pick_device(options.device)
    tokenizer = load_tokenizer(source)
    how = prompting(tokenizer, options.chat_template, options.system_instruction, options.fewshot_as_multiturn)
    special_tokens = complete_special_tokens(tokenizer, source)
    making = checked_making(options.tasks, source, tokenizer, options.seed, options.needle_tokens, options.needle_depth)
    tasks = load_tasks(options.tasks, options.include_path, making)
    if gen_kwargs and not any(kind == "generate_until" for task in tasks.values() for kind in output_types(task)):
        raise NestQuantError("--gen-kwargs is given, but no task generates text", NOT_EVALUATED, "leave it out")
    metrics = {name: list(task.aggregation()) if hasattr(task, "aggregation") else [] for name, task in tasks.items()}
    gates = [parse_gate(text, metrics) for text in options.fail_below]
    if how.template is None and tokenizer.chat_template:
        logger.info("the tokenizer has a chat template; scores are without it (with it: --apply-chat-template)")
    model = load_model(source, options.dtype, device)
    resident = set_resident_if_quantized(model, options.resident)
    settings = Settings(
        options.num_fewshot, options.limit, options.batch_size, how, gen_kwargs, options.log_samples, options.seed
    )
    result = run_tasks(model, tokenizer, list(tasks.values()), settings)
    circumstances = {
        "gen_kwargs": gen_kwargs,
        "needle": {"tokens": making.needle_tokens, "depth": making.needle_depth} if NEEDLE in options.tasks else None,
        "special_tokens": special_tokens,
        "seconds": time.monotonic() - start,
        "resident": resident,
        "processes": team().size,
        "model": model_protocol(source, model),
    }
    return team().run_on_rank0(lambda: _report(result, options, how, gates, circumstances))


def _report(
    result: dict[str, Any], options: TaskOptions, how: Prompting, gates: Sequence[Gate], circumstances: dict[str, Any]
) -> TaskReport:
    results = _finite(result["results"])
    protocol = {
        "tasks": list(options.tasks),
        "task_versions": _finite(result.get("versions", {})),
        "num_fewshot": _finite(result.get("n-shot", {})),
        "samples": result.get("n-samples", {}),
        "limit": options.limit,
        "batch_size": options.batch_size,
        "batch_sizes": result["batch_sizes"],
        "include_path": str(options.include_path) if options.include_path else None,
        **how.as_json(),
        "seed": dict.fromkeys(("random", "numpy", "torch", "fewshot"), options.seed),
        **circumstances,
        "versions": versions("lm_eval", "datasets"),
    }
    scores = {**results, **_finite(result.get("groups", {}))}
    samples = [
        {"task": task, **_finite(item)} for task, items in (result.get("samples") or {}).items() for item in items
    ]
    verdicts = [judge(gate, scores) for gate in gates]
    return TaskReport(results, _table(result), _in_words(protocol, how), protocol, verdicts, samples)


def _in_words(protocol: Mapping[str, Any], how: Prompting) -> str:
    detected = ", ".join(str(size) for size in dict.fromkeys(protocol["batch_sizes"]))
    parts = [how.described(), f"batch size {protocol['batch_size']}{f' ({detected})' if detected else ''}"]
    if protocol["gen_kwargs"]:
        parts.append(
            "generation with " + ", ".join(f"{name}={value}" for name, value in protocol["gen_kwargs"].items())
        )
    return ", ".join(parts)


def output_types(task: Any) -> set[str]:
    """Types of requests of an lm-eval task, or of all tasks of a group: "multiple_choice", "generate_until" …"""
    members = task.get_all_tasks() if hasattr(task, "get_all_tasks") else [task]
    return {str(member.get_config("output_type")) for member in members}


def _check_numbers(options: TaskOptions) -> None:
    limit, fewshot = options.limit, options.num_fewshot
    if not options.tasks:
        raise NestQuantError("--tasks is empty", NOT_EVALUATED, "name tasks, such as --tasks piqa,arc_easy")
    if limit is not None and not (limit > 0 and (limit < 1 or limit == int(limit))):
        raise NestQuantError(
            f"--limit {limit:g} is not a number of items or a fraction",
            NOT_EVALUATED,
            "use a number of items, or a fraction below 1",
        )
    if fewshot is not None and fewshot < 0:
        raise NestQuantError(f"--num-fewshot {fewshot} is below 0", NOT_EVALUATED, "use 0 or more")
    _check_batch(options.batch_size)


def _check_batch(size: int | str) -> None:
    automatic, _, times = str(size).partition(":")
    good = size >= 1 if isinstance(size, int) else automatic == "auto" and (":" not in size or _at_least_one(times))
    if not good:
        raise NestQuantError(
            f"--batch-size {size} cannot be read",
            NOT_EVALUATED,
            "use a number from 1, auto, or auto:4 to search it 4 times",
        )


def _at_least_one(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text) >= 1


def _finite(value: Any) -> Any:
    """The value in a form that JSON can hold: numpy numbers as Python's, NaN and infinity as None."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)


def _table(result: dict[str, Any]) -> str:
    from lm_eval.utils import make_table

    table = make_table(result)
    return table + ("\n" + make_table(result, "groups") if result.get("groups") else "")
