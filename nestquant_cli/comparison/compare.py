"""A whole comparison, from names to files: what `nestquant compare` runs."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..base.errors import NestQuantError
from ..base.names import nearest
from ..base.processor import machine
from ..calibration.text import load_text
from ..calibration.windows import cut_windows, hash_tokens, tokenize, tokens_of, window_stride
from ..checkpoint.manifest import MANIFEST
from ..evaluation.gates import main_metric
from ..evaluation.generated.checks import checked_making
from ..evaluation.measure_tasks import TaskOptions, measure_tasks
from ..evaluation.provenance import versions
from ..evaluation.task_definitions import load_tasks
from ..models.describe import describe
from ..models.device_choice import pick_device
from ..models.source import Source, fingerprint, load_tokenizer, resolve
from ..parallel.team import launched
from ..storage.files import sha256_file, write_json, write_text
from .checkpoints import make_checkpoints, run_keys
from .entries import NOT_COMPARED, REFERENCE, Entry
from .plots import draw
from .result import Comparison, Row, gap_closed, reference_row, row_of
from .saved_scores import ComparisonState
from .scoring import Scoring, score_models
from .tables import markdown

RESULT, REPORT = "comparison.json", "report.md"


@dataclass(frozen=True)
class CompareOptions:
    """What to compare; the fields are the options of `nestquant compare`.

    Attributes:
        model: the original model.
        entries: the recipes.
        folder: output folder of the checkpoints and the result.
        against: name of the recipe whose gap the others close; None for none.
        dataset, split, text_field, seqlen, max_windows, bos: text that is scored.
        tasks, limit, include_path: tasks of lm-eval, see `evaluation.measure_tasks.TaskOptions`.
        seed: seed of the tasks.
        dtype: dtype that models are loaded in, for quantizing and scoring.
        device: a torch device; "auto" takes a GPU where there is one.
        resident: form of quantized weights in memory: "packed", "int8" or "auto".
    """

    model: Source
    entries: tuple[Entry, ...]
    folder: Path
    against: str | None = None
    dataset: str = "wikitext2"
    split: str = "test"
    text_field: str | None = None
    seqlen: int = 2048
    max_windows: int | None = None
    bos: str = "default"
    tasks: tuple[str, ...] = ()
    limit: float | None = None
    include_path: Path | None = None
    seed: int = 0
    dtype: str = "auto"
    device: str = "auto"
    resident: str = "auto"


def compare(options: CompareOptions) -> Comparison:
    """Quantizes, scores and reports; an interrupted comparison of the same is resumed.

    Raises:
        NestQuantError: bad input, which is looked for before any work; see the functions called.
    """
    names = [entry.name for entry in options.entries]
    if options.against is not None and options.against not in names:
        raise NestQuantError(f"there is no recipe '{options.against}'", NOT_COMPARED, nearest(options.against, names))
    if launched().size > 1:
        raise NestQuantError(f"{launched().size} processes were started", NOT_COMPARED, "compare with a single one")
    source, device = options.model, pick_device(options.device)
    if source.kind == "packed":
        raise NestQuantError(f"{source.name} is a packed checkpoint", NOT_COMPARED, "give the original model")
    windows, about = _windows(options, source)
    if options.tasks:
        making = checked_making(options.tasks, source, load_tokenizer(source), options.seed)
        load_tasks(options.tasks, options.include_path, making)
    with ComparisonState(options.folder) as state:
        return _compare(options, source, device, windows, about, state)


def _compare(
    options: CompareOptions, source: Source, device: str, windows: Any, about: dict[str, Any], state: ComparisonState
) -> Comparison:
    """Makes what is not there yet, and writes table, plots and report."""
    names = [entry.name for entry in options.entries]
    settings = run_keys(source, options.entries, device, options.dtype, windows)
    make_checkpoints(source, options.entries, settings, options.folder, device, state, options.dtype)
    models = {name: resolve(str(options.folder / name)) for name in names}
    measured = {**about, "dtype": options.dtype, "device": device, "resident": options.resident, "versions": versions()}
    measured |= {"machine": machine(device), "model_sha256": fingerprint(source)}
    keys = {name: measured | {"manifest": sha256_file(options.folder / name / MANIFEST)} for name in names}
    scoring = Scoring(windows, options.dtype, device, options.resident)
    totals = score_models(source, models, keys, scoring, state)
    tokens = options.seqlen - 1
    rows = [reference_row(totals[names[0]], tokens)]
    for name in names:
        run = state.get(f"runs/{name}", settings[name])
        rows.append(row_of(options.folder / name, totals[name], tokens, run and run["seconds"]))
    rows = _with_tasks(_with_gaps(rows, options.against), options, {REFERENCE: source} | models, keys, state)
    protocol = _protocol(options, measured, settings)
    comparison = Comparison(source.name, options.against, rows, protocol)
    write_json(options.folder / RESULT, comparison.as_json())
    write_text(options.folder / REPORT, markdown(comparison, draw(comparison, options.folder)))
    return comparison


def _protocol(options: CompareOptions, measured: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """How the rows were measured, JSON-ready.

    Args:
        options: what was compared.
        measured: what scores depend on: text, windows, dtype, device, versions, machine and model.
        settings: what determines each checkpoint, by name.
    """
    source = options.model
    calibration = {
        name: f"{key['samples']} × {key['seqlen']} tokens of {key['dataset']}, seed {key['seed']}"
        + (f", BOS {key['bos']}" if key["window_start"] else "")
        for name, key in settings.items()
    }
    return {
        **measured,
        "reference": describe(source, "bfloat16" if options.dtype == "auto" else options.dtype),
        "commit": source.hub and source.hub.sha,
        "calibration": calibration,
        "settings": settings,
    }


def _windows(options: CompareOptions, source: Source) -> tuple[Any, dict[str, Any]]:
    """The windows to score, (windows, seqlen) int64, and what the protocol says of them."""
    tokenizer = load_tokenizer(source)
    text = load_text(options.dataset, options.split, tokenizer, options.text_field)
    tokens, whole = tokenize(text, tokenizer, options.bos, tokens_of(options.max_windows, options.seqlen, options.bos))
    windows = cut_windows(tokens, tokenizer, options.seqlen, options.bos, text.name)
    used = windows[: options.max_windows].long()
    return used, {
        "dataset": text.name,
        "split": text.split,
        "text_sha256": text.sha256,
        "tokens_sha256": hash_tokens(used),
        "windows": len(used),
        "windows_in_text": len(windows) if whole else None,
        **text.source,
        "seqlen": options.seqlen,
        "stride": window_stride(options.seqlen, options.bos),
        "bos": options.bos,
    }


def _with_gaps(rows: list[Row], against: str | None) -> list[Row]:
    reference = next((row.gap for row in rows if row.name == against), None)
    return [dataclasses.replace(row, gap_closed=gap_closed(row.gap, reference)) for row in rows]


def _with_tasks(
    rows: list[Row], options: CompareOptions, models: dict[str, Source], keys: dict[str, Any], state: ComparisonState
) -> list[Row]:
    """The rows with the main metric of every task, measured where it is not known yet."""
    if not options.tasks:
        return rows
    asked = {"tasks": list(options.tasks), "limit": options.limit, "seed": options.seed}
    whole = {name: {**asked, "of": keys[name] if name in keys else fingerprint(models[name])} for name in models}
    done = []
    for row in rows:
        metrics = state.get(f"tasks/{row.name}", whole[row.name])
        if metrics is None:
            report = measure_tasks(
                TaskOptions(
                    models[row.name],
                    options.tasks,
                    limit=options.limit,
                    include_path=options.include_path,
                    seed=options.seed,
                    dtype=options.dtype,
                    device=options.device,
                    resident=options.resident,
                )
            )
            metrics = {task: list(main_metric(values)) for task, values in report.results.items()}
            state.put(f"tasks/{row.name}", whole[row.name], metrics)
        done.append(dataclasses.replace(row, tasks={task: tuple(metric) for task, metric in metrics.items()}))
    return done
