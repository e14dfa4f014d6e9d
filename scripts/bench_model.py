"""Times a whole model on this machine: the original in plain transformers against its packed checkpoints, in one run.

    python scripts/bench_model.py demo --w4a4kv4 DIR --w4a8kv4 DIR --w4 DIR [--windows 3] [--repeats 3] [--context 4096]

Scoring is what eval-ppl does with a window. Generation makes --new tokens after --prompt tokens. The models run in
turns, so that other programs on the machine affect all of them, and each result is the median of its repeats. Ratios
are to the original in the same run; the table also shows the spread between repeats.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from nestquant_cli.calibration.text import load_text
from nestquant_cli.calibration.windows import token_windows
from nestquant_cli.checkpoint.load import load_model
from nestquant_cli.evaluation.perplexity import score
from nestquant_cli.models.source import load_tokenizer, resolve
from nestquant_cli.modules.attach import quantized_linears
from nestquant_cli.modules.cache import is_packed
from nestquant_cli.modules.resident import resident_bytes, set_resident
from nestquant_cli.storage.files import write_json

ORIGINAL = "original"
FORMS = ("int8", "packed")
clock = time.perf_counter


def main() -> None:
    """Measures, prints the table and writes the JSON."""
    options = parse()
    global clock
    clock = time.process_time if options.cpu_time else time.perf_counter
    if options.threads:
        torch.set_num_threads(options.threads)
    models = load(options)
    results: list[dict[str, Any]] = []
    scored = {name: model for name, model in models.items() if not name.startswith("w4 ")}
    generating = {name: model for name, model in models.items() if options.all or not name.startswith("w4a4kv4")}
    if len(scored) > 1 and options.windows:
        windows = token_windows(load_text(options.dataset, "test"), load_tokenizer(resolve(options.model)), 2048)
        results += measure(
            "score, s", scored, lambda model: scoring(model, windows[: options.windows]), options.repeats
        )
    if len(generating) > 1 and options.new:
        results += measure("token, s", generating, lambda model: generation(model, options), options.repeats)
    results += sizes(models)
    if options.context:
        results += measure("token at context, s", models, lambda model: long_context(model, options.context), 1)
        results += cache_sizes(models, options.context)
    Console().print(table(results, f"{options.model}, {torch.get_num_threads()} threads"))
    if options.output:
        versions = {"python": platform.python_version(), "torch": torch.__version__}
        arguments = {key: str(value) for key, value in vars(options).items()}
        write_json(options.output, {"arguments": arguments, **versions, "results": results})


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", nargs="?", default="demo", help="the original")
    parser.add_argument("--w4a4kv4", type=Path, help="checkpoint with everything quantized, to score")
    parser.add_argument("--w4a8kv4", type=Path, help="checkpoint with int8 activations, to score and to generate")
    parser.add_argument("--w4", type=Path, help="checkpoint with only weights quantized, to generate")
    parser.add_argument("--dataset", default="demo")
    parser.add_argument("--windows", type=int, default=1, help="windows of 2048 tokens per repeat; 0 for none")
    parser.add_argument("--prompt", type=int, default=128, help="tokens in the prompt")
    parser.add_argument("--new", type=int, default=128, help="tokens to generate; 0 for none")
    parser.add_argument("--all", action="store_true", help="also generate with everything quantized")
    parser.add_argument("--context", type=int, default=0, help="also time one token after so many; 0 for not")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cpu-time", action="store_true", help="measure CPU time, for a shared machine")
    parser.add_argument("--threads", type=int, default=0, help="number of threads; 0 for torch's own")
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


def load(options: argparse.Namespace) -> dict[str, Any]:
    """Every model in every form, by its name in the table."""
    models: dict[str, Any] = {ORIGINAL: load_model(resolve(options.model))}
    for kind in ("w4a4kv4", "w4a8kv4", "w4"):
        folder = getattr(options, kind)
        for form in FORMS if folder else ():
            model = load_model(resolve(str(folder)))
            set_resident(model, form)
            models[f"{kind} {form}"] = model
    return models


def scoring(model: Any, windows: torch.Tensor) -> float:
    """Seconds per window."""
    start = clock()
    score(model, windows, progress=False)
    return (clock() - start) / len(windows)


def generation(model: Any, options: argparse.Namespace) -> float:
    """Seconds per token, the prompt included."""
    ids = prompt(model, options.prompt)
    start = clock()
    count = {"max_new_tokens": options.new, "min_new_tokens": options.new}
    model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, **count)
    return (clock() - start) / options.new


def long_context(model: Any, context: int) -> float:
    """Seconds per token with a cache of `context` tokens."""
    steps = 16
    with torch.no_grad():
        step = model(input_ids=prompt(model, context), use_cache=True, logits_to_keep=1)
        start = clock()
        for _ in range(steps):
            token = step.logits[:, -1:].argmax(-1)
            step = model(input_ids=token, past_key_values=step.past_key_values, use_cache=True)
    return (clock() - start) / steps


def cache_sizes(models: dict[str, Any], context: int) -> list[dict[str, Any]]:
    """Bytes of keys and values at `context` tokens."""
    found: dict[str, float] = {}
    for name, model in models.items():
        with torch.no_grad():
            cache = model(input_ids=prompt(model, context), use_cache=True, logits_to_keep=1).past_key_values
        plain = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers) if not is_packed(cache) else 0
        found[name] = cache.packed_bytes() if is_packed(cache) else plain
    return rows(f"cache of {context} tokens, MB", {name: [size / 1e6] for name, size in found.items()})


def prompt(model: Any, tokens: int) -> torch.Tensor:
    """Random token ids (1, tokens)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, model.config.get_text_config().vocab_size, (1, tokens), generator=generator)


def sizes(models: dict[str, Any]) -> list[dict[str, Any]]:
    """Bytes in each model of the layers that any of the models quantizes."""
    names = {name for model in models.values() for name in quantized_linears(model)}
    found = {}
    for name, model in models.items():
        plain = sum(model.get_submodule(each).weight.nbytes for each in names)
        found[name] = [(resident_bytes(model) if quantized_linears(model) else plain) / 1e6]
    return rows("quantized layers, MB", found)


def measure(what: str, models: dict[str, Any], run: Callable[[Any], float], repeats: int) -> list[dict[str, Any]]:
    """Runs the models in turns, `repeats` times after one time that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in models}
    for repeat in range(repeats + 1):
        for name, model in models.items():
            seconds = run(model)
            if repeat:
                times[name].append(seconds)
    return rows(what, times)


def rows(what: str, values: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Median, lowest and highest value of each model, and the ratio of its median to the original's."""
    base = statistics.median(values[ORIGINAL])
    return [
        {
            "what": what,
            "model": name,
            "median": statistics.median(found),
            "lowest": min(found),
            "highest": max(found),
            "ratio": statistics.median(found) / base,
        }
        for name, found in values.items()
    ]


def table(results: list[dict[str, Any]], title: str) -> Table:
    """The results as a table."""
    shown = Table(title=title)
    for heading in ("measured", "model"):
        shown.add_column(heading)
    for heading in ("median", "from … to", "× original"):
        shown.add_column(heading, justify="right")
    last = None
    for row in results:
        spread = f"{row['lowest']:.4g} … {row['highest']:.4g}" if row["lowest"] != row["highest"] else ""
        shown.add_row(
            row["what"] if row["what"] != last else "",
            row["model"],
            f"{row['median']:.4g}",
            spread,
            f"{row['ratio']:.3f}",
        )
        last = row["what"]
    return shown


if __name__ == "__main__":
    main()
