"""Times quantizing a model, calibration and writing included, against a plain forward pass of the same tokens.

    python scripts/bench_quantize.py demo [--dataset FILE] [--samples 32] [--seqlen 2048] [--output F]

The forward pass is transformers' own, logits included, in the dtype of the model's file. Both run in turns, and the
ratio of their medians is printed.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from nestquant_cli.calibration.text import load_text
from nestquant_cli.calibration.windows import sample_windows
from nestquant_cli.checkpoint.load import load_model
from nestquant_cli.models.source import Source, load_tokenizer, resolve
from nestquant_cli.pipeline.quantize import quantize
from nestquant_cli.pipeline.recipe import Recipe
from nestquant_cli.storage.files import write_json


def main() -> None:
    """Measures, prints the table and writes the JSON."""
    options = parse()
    source = resolve(options.model)
    shape = {"dataset": options.dataset, "samples": options.samples, "seqlen": options.seqlen}
    recipe = Recipe(weight_bits=options.bits, act_bits=options.bits, kv_bits=options.bits, **shape)
    text = load_text(options.dataset, "train")
    windows = sample_windows(text, load_tokenizer(source), options.seqlen, options.samples, recipe.seed).ids
    times: dict[str, list[float]] = {"forward": [], "quantize": []}
    for _ in range(options.repeats):
        times["forward"].append(forward(source, windows))
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            quantize(source, recipe, Path(folder) / "checkpoint", "cpu")
            times["quantize"].append(time.perf_counter() - start)
    medians = {name: statistics.median(found) for name, found in times.items()}
    ratio = medians["quantize"] / medians["forward"]
    table = Table("measured", "seconds", "× forward", title=f"{options.model}, {windows.numel()} tokens")
    for name, seconds in medians.items():
        table.add_row(name, f"{seconds:.1f}", f"{seconds / medians['forward']:.2f}")
    Console().print(table)
    if options.output:
        write_json(options.output, {"arguments": {**vars(options), "output": None}, "seconds": times, "ratio": ratio})


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--dataset", default="demo")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--seqlen", type=int, default=2048)
    parser.add_argument("--bits", type=float, default=4.0, help="bits of weights, activations, keys and values")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


@torch.inference_mode()
def forward(source: Source, windows: torch.Tensor) -> float:
    """Seconds for all windows, one after the other, without loading."""
    model = load_model(source)
    model(input_ids=windows[:1], use_cache=False)
    start = time.perf_counter()
    for window in windows:
        model(input_ids=window[None], use_cache=False)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
